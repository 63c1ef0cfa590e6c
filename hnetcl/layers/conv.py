"""The two-dimensional convolution for every algebra."""

from collections.abc import Callable
from contextlib import suppress
from typing import Self

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

    `weight` is [d, out / d, in / d, kernel_size, kernel_size]. `.to(memory_format=torch.channels_last)` is remembered, and the
    real weight [out, in, kernel_size, kernel_size] laid out so: outputs then have that format, as those of torch's layer.

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
        self.channels_last = False

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.real_weight(), self.bias, self.stride, self.padding)

    def real_weight(self) -> Tensor:
        """[out, in, kernel_size, kernel_size]."""
        return self.algebra.block_matrix(self.weight, self.channels_last)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `.to()` and its like do to every tensor; to them `weight` is no image, but the real weight is one."""
        image = torch.empty(2, 2, 2, 2, device=self.weight.device)
        image = image.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        with suppress(RuntimeError):  # of a format for images of three axes
            self.channels_last = fn(image).is_contiguous(memory_format=torch.channels_last)

        def apply(t: Tensor) -> Tensor:
            flat = t.flatten(1) if t.ndim > 3 else t
            new = fn(flat)
            return t if new is flat else new.reshape(t.shape)

        super()._apply(apply, recurse)
        return self

    def as_real(self) -> nn.Conv2d:
        """torch's layer that computes the same; its weight is a copy."""
        matrix = self.algebra.block_matrix(self.weight.detach()).clone()
        real = nn.Conv2d(matrix.shape[1], matrix.shape[0], matrix.shape[-1], self.stride, self.padding, device="meta")
        real.weight, real.bias = nn.Parameter(matrix, self.weight.requires_grad), self.bias
        return real
