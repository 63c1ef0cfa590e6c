"""The two-dimensional convolution for every algebra."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnetcl.algebra import REAL, Algebra, as_algebra
from hnetcl.layers.init import kaiming_normal


class Conv2d(nn.Module):
    """Convolution over numbers of d components: [N, in, H, W] -> [N, out, H', W'], component-major.

    Args:
        in_channels, out_channels: real channels, multiples of d.
        kernel_size: side of the square kernel.
        algebra: of the product.
        bias: whether a bias [out] exists; it starts at zero.
        stride, padding: as in torch.

    `weight` is [d, out / d, in / d, kernel_size, kernel_size].

    Raises:
        ArgumentError: a width is not a multiple of d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        algebra: str | Algebra = REAL,
        bias: bool = True,
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.algebra = as_algebra(algebra)
        numbers_in = self.algebra.numbers(in_channels, "in_channels")
        numbers_out = self.algebra.numbers(out_channels, "out_channels")
        shape = (self.algebra.dim, numbers_out, numbers_in, kernel_size, kernel_size)
        self.weight = nn.Parameter(kaiming_normal(*shape))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.algebra.block_matrix(self.weight), self.bias, self.stride, self.padding)

    def as_real(self) -> nn.Conv2d:
        """torch's layer that computes the same; its weight is a copy."""
        matrix = self.algebra.block_matrix(self.weight.detach()).clone()
        real = nn.Conv2d(matrix.shape[1], matrix.shape[0], matrix.shape[-1], self.stride, self.padding, device="meta")
        real.weight, real.bias = nn.Parameter(matrix, self.weight.requires_grad), self.bias
        return real
