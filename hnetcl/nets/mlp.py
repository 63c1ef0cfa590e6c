"""The multilayer perceptron."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from hnetcl.algebra import Algebra, AlgebraName, as_algebra
from hnetcl.layers import Linear
from hnetcl.nets.blocks import Norm, check_widths, dense, first_algebra
from hnetcl.registry import Widths, register


@register("net", "mlp")
class MLP(nn.Module):
    """Hidden layers of Linear, norm and ReLU, then a real head: [N, C, H, W] -> [N, num_outputs].

    Args:
        in_shape: (C, H, W) of an image.
        num_outputs: K, logits per task.
        norm: width -> norm layer; None for none (the layers then have biases).
        hidden: real widths, multiples of d.
        algebra: of all layers but the first and the head.
        in_algebra: of the first, see `first_algebra`.

    Raises:
        ArgumentError: a width is not a multiple of d, that of the norm included, or there is none.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        num_outputs: int,
        norm: Norm | None = None,
        *,
        hidden: Widths = (400, 400),
        algebra: AlgebraName | Algebra = "real",
        in_algebra: AlgebraName | Algebra = "real",
    ) -> None:
        super().__init__()
        algebra = as_algebra(algebra)
        check_widths("hidden", hidden, algebra, norm)
        first = first_algebra(in_algebra, algebra, in_shape)
        layers: list[nn.Module] = [nn.Flatten(), *dense(math.prod(in_shape), hidden[0], first, norm)]
        for width_in, width_out in pairwise(hidden):
            layers += dense(width_in, width_out, algebra, norm)
        self.body = nn.Sequential(*layers)
        self.head = Linear(hidden[-1], num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits
