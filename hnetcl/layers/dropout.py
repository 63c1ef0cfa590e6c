"""Dropout of whole numbers."""

import torch.nn.functional as F
from torch import Tensor, nn

from hnetcl.algebra import Algebra, as_algebra
from hnetcl.errors import ArgumentError


class Dropout(nn.Module):
    """In training zeroes all components of a number together, with probability p, and divides what stays by 1 - p.

    x [N, C, *S] -> [N, C, *S], component-major.

    Args:
        p: of a number.
        algebra: of the numbers.
        whole_channels: whether the numbers of a channel stay or go together at all places S of a sample (Tompson et al. 2015).

    Raises:
        ArgumentError: p is no probability.

    Source: Srivastava et al. 2014; torch's own drops components one by one, which turns what stays into other numbers.
    """

    def __init__(self, p: float, algebra: str | Algebra, whole_channels: bool = False) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ArgumentError("p", p, "must be from 0 to 1")
        self.p, self.algebra, self.whole_channels = p, as_algebra(algebra), whole_channels

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        numbers = x.unflatten(1, (self.algebra.dim, -1))
        n, _, q, *space = numbers.shape
        kept = F.dropout(x.new_ones(n, 1, q, *([1] * len(space) if self.whole_channels else space)), self.p)
        y: Tensor = (numbers * kept).flatten(1, 2)
        return y

    def extra_repr(self) -> str:
        return f"p={self.p}, algebra={self.algebra.name}, whole_channels={self.whole_channels}"
