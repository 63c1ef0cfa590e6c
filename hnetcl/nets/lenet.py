"""LeNet, as it is used for MNIST today: two convolutions, then fully connected layers."""

from collections.abc import Sequence

from torch import Tensor, nn

from hnetcl.algebra import Algebra, AlgebraName, as_algebra
from hnetcl.errors import ArgumentError
from hnetcl.layers import Linear
from hnetcl.nets.blocks import Norm, check_widths, conv, dense, first_algebra
from hnetcl.registry import Widths, register

KERNEL = 5


@register("net", "lenet")
class LeNet(nn.Module):
    """5 x 5 convolutions with norm, ReLU and 2 x 2 max pooling, dense layers, a real head: [N, C, H, W] -> [N, num_outputs].

    Args:
        in_shape: (C, H, W) of an image.
        num_outputs: K, logits per task.
        norm: width -> norm layer; None for none (the layers then have biases).
        channels: real widths of the convolutions, multiples of d.
        hidden: real widths of the fully connected layers, multiples of d.
        algebra: of all layers but the first and the head.
        in_algebra: of the first, see `first_algebra`.

    Raises:
        ArgumentError: a width is not a multiple of d, that of the norm included, there is none, or the image is too small.

    Source: LeCun et al. 1998, Gradient-based learning applied to document recognition.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        num_outputs: int,
        norm: Norm | None = None,
        *,
        channels: Widths = (20, 48),
        hidden: Widths = (400,),
        algebra: AlgebraName | Algebra = "real",
        in_algebra: AlgebraName | Algebra = "real",
    ) -> None:
        super().__init__()
        algebra = as_algebra(algebra)
        check_widths("hidden", hidden, algebra, norm)
        check_widths("channels", channels, algebra, norm)
        first = first_algebra(in_algebra, algebra, in_shape)
        width, height, breadth = in_shape
        layers: list[nn.Module] = []
        for i, width_out in enumerate(channels):
            layers += conv(width, width_out, KERNEL, algebra if i else first, norm)
            width, height, breadth = width_out, (height - KERNEL + 1) // 2, (breadth - KERNEL + 1) // 2
        if min(height, breadth) < 1:
            raise ArgumentError("channels", list(channels), f"too many convolutions for images of {tuple(in_shape)}")
        layers.append(nn.Flatten())
        width *= height * breadth
        for width_out in hidden:
            layers += dense(width, width_out, algebra, norm)
            width = width_out
        self.body = nn.Sequential(*layers)
        self.head = Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits
