"""The linear layer for every algebra."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnetcl.algebra import REAL, Algebra, as_algebra
from hnetcl.layers.weights import kaiming_normal


class Linear(nn.Module):
    """y = W x + b over numbers of d components: [..., in] -> [..., out], component-major.

    Args:
        in_features, out_features: real channels, multiples of d.
        algebra: of the product.
        bias: whether b [out] exists; it starts at zero.

    `weight` is [d, out / d, in / d]: 1 / d of the parameters of a real layer of the same widths.

    Raises:
        ArgumentError: a width is not a multiple of d.
    """

    def __init__(self, in_features: int, out_features: int, algebra: str | Algebra = REAL, bias: bool = True) -> None:
        super().__init__()
        self.algebra = as_algebra(algebra)
        numbers_in = self.algebra.numbers(in_features, "in_features")
        numbers_out = self.algebra.numbers(out_features, "out_features")
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(kaiming_normal((self.algebra.dim, numbers_out, numbers_in), in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.algebra.block_matrix(self.weight), self.bias)

    def fans(self) -> tuple[int, int]:
        """Real inputs that a real output sums, and real outputs that a real input goes to."""
        return self.in_features, self.out_features

    def as_real(self) -> nn.Linear:
        """torch's layer that computes the same; its weight is a copy."""
        matrix = self.algebra.block_matrix(self.weight.detach()).clone()
        real = nn.Linear(matrix.shape[1], matrix.shape[0], device="meta")
        real.weight, real.bias = nn.Parameter(matrix, self.weight.requires_grad), self.bias  # type: ignore[assignment]
        return real

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, algebra={self.algebra.name}, bias={self.bias is not None}"
