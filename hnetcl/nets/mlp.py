"""The multilayer perceptron."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from hnetcl.algebra import REAL, Algebra, as_algebra
from hnetcl.errors import ArgumentError
from hnetcl.layers import Linear
from hnetcl.nets.blocks import Norm, dense


class MLP(nn.Module):
    """Hidden layers of Linear, norm and ReLU, then a real head: [N, C, H, W] -> [N, num_classes].

    Args:
        in_shape: (C, H, W) of an image.
        num_classes: K, logits per task.
        hidden: real widths, multiples of d.
        algebra: of all layers but the first and the head.
        norm: width -> norm layer; None for none (the layers then have biases).

    Raises:
        ArgumentError: a width is not a multiple of d, or there is none.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        num_classes: int,
        hidden: Sequence[int] = (400, 400),
        algebra: str | Algebra = REAL,
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        if not hidden:
            raise ArgumentError("hidden", list(hidden), "needs at least one width")
        algebra = as_algebra(algebra)
        layers: list[nn.Module] = [nn.Flatten(), *dense(math.prod(in_shape), hidden[0], REAL, norm)]
        for width_in, width_out in pairwise(hidden):
            layers += dense(width_in, width_out, algebra, norm)
        self.body = nn.Sequential(*layers)
        self.head = Linear(hidden[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits
