"""The convolutional network of Zenke et al. 2017."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor, nn

from hnetcl.algebra import Algebra, AlgebraName, as_algebra
from hnetcl.errors import ArgumentError
from hnetcl.layers import Linear
from hnetcl.nets.blocks import MaxPool, Norm, check_widths, conv_norm, dense, first_algebra
from hnetcl.registry import Widths, register


@register("net", "zenke")
class Zenke(nn.Module):
    """Pairs of 3 x 3 convolutions, each with 2 x 2 max pooling behind, dense layers, a real head: [N, C, H, W] -> [N, K].

    The first convolution of a pair is padded, the second is not. ReLU follows each layer, dropout each pair and dense layer.

    Args:
        in_shape: (C, H, W) of an image.
        num_outputs: K, logits per task.
        norm: width -> norm layer, before each ReLU; None for none, as in the paper (the layers then have biases).
        channels: real widths of the pairs, multiples of d.
        hidden: real widths of the fully connected layers, multiples of d.
        dropout: rate behind a pair; twice that behind a fully connected layer.
        algebra: of all layers but the first and the head.
        in_algebra: of the first, see `first_algebra`.

    Raises:
        ArgumentError: a width is not a multiple of d, that of the norm included, there is none, or the image is too small.

    Source: Zenke et al. 2017 (arXiv:1703.04200), appendix, and their code: github.com/ganguli-lab/pathint.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        num_outputs: int,
        norm: Norm | None = None,
        *,
        channels: Widths = (32, 64),
        hidden: Widths = (512,),
        dropout: Annotated[float, Ge(0), Le(0.5)] = 0.25,
        algebra: AlgebraName | Algebra = "real",
        in_algebra: AlgebraName | Algebra = "real",
    ) -> None:
        super().__init__()
        algebra = as_algebra(algebra)
        first = first_algebra(in_algebra, algebra, in_shape)
        check_widths("hidden", hidden, algebra, norm)
        check_widths("channels", channels, algebra, norm)
        width, height, breadth = in_shape
        layers: list[nn.Module] = []
        for i, out in enumerate(channels):
            layers += [*conv_norm(width, out, 3, algebra if i else first, norm, padding=1), nn.ReLU()]
            layers += [*conv_norm(out, out, 3, algebra, norm), nn.ReLU(), MaxPool(), nn.Dropout(dropout)]
            width, height, breadth = out, (height - 2) // 2, (breadth - 2) // 2
        if min(height, breadth) < 1:
            raise ArgumentError("channels", list(channels), f"too many convolutions for images of {tuple(in_shape)}")
        layers.append(nn.Flatten())
        width *= height * breadth
        for out in hidden:
            layers += [*dense(width, out, algebra, norm), nn.Dropout(2 * dropout)]
            width = out
        self.body = nn.Sequential(*layers)
        self.head = Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits
