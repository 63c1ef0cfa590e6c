"""Pooling of whole numbers. The average, and the maximum by component, are torch's own."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hnetcl.algebra import Algebra, as_algebra
from hnetcl.errors import ArgumentError
from hnetcl.kernels.layout import has_channels_last, sum_dtype
from hnetcl.layers.sizes import Size, per_axis

POOLS: tuple[Any, ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
ADAPTIVE_POOLS: tuple[Any, ...] = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)


class ModulusMaxPool(nn.Module):
    """The number of the largest modulus in each window, whole: [N, C, *S] -> [N, C, *S'], with one to three axes in S.

    Args:
        kernel_size: of the window, for all axes or each.
        algebra: of the numbers.
        stride: the kernel size where left out.
        padding, dilation, ceil_mode: as in torch; padding never wins.

    The first of equals wins. For real numbers that is the value of the largest amount, not the largest value.

    Raises:
        ArgumentError: an option is outside its set.
    """

    def __init__(
        self,
        kernel_size: Size,
        algebra: str | Algebra,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.algebra = as_algebra(algebra)
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode = padding, dilation, ceil_mode
        window = per_axis("kernel_size", kernel_size)
        sides = per_axis("padding", padding, least=0)
        per_axis("stride", self.stride)
        per_axis("dilation", dilation)
        axes = range(max(len(window), len(sides)))
        if any(2 * side > k for k, side, _ in zip(cycle(window), cycle(sides), axes, strict=False)):
            raise ArgumentError("padding", padding, f"must be at most half of the kernel, {kernel_size}")

    def forward(self, x: Tensor) -> Tensor:
        pool = _by_axes(POOLS, x)
        window = self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        return _taken(x, pool(_square_modulus(x, self.algebra), *window, return_indices=True)[1], self.algebra)

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, algebra={self.algebra.name}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class AdaptiveModulusMaxPool(nn.Module):
    """The same with windows that make an output of a given size: [N, C, *S] -> [N, C, *output_size].

    Args:
        output_size: for all axes or each; None for an axis that stays.
        algebra: of the numbers.

    Raises:
        ArgumentError: a size is not positive.
    """

    def __init__(self, output_size: int | Sequence[int | None], algebra: str | Algebra) -> None:
        super().__init__()
        self.algebra, self.output_size = as_algebra(algebra), output_size
        sizes = output_size if isinstance(output_size, Sequence) else [output_size]
        per_axis("output_size", [size for size in sizes if size is not None] or 1)

    def forward(self, x: Tensor) -> Tensor:
        pool = _by_axes(ADAPTIVE_POOLS, x)
        return _taken(x, pool(_square_modulus(x, self.algebra), self.output_size, return_indices=True)[1], self.algebra)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, algebra={self.algebra.name}"


def _by_axes(pools: tuple[Any, ...], x: Tensor) -> Any:
    if not 3 <= x.ndim <= 5:
        raise ValueError(f"expected x of shape [N, C, *S] with one to three axes in S, got {tuple(x.shape)}")
    return pools[x.ndim - 3]


def _square_modulus(x: Tensor, algebra: Algebra) -> Tensor:
    """[N, Q, *S], without a graph: it chooses, and nothing else."""
    square: Tensor = x.detach().to(sum_dtype(x.dtype)).unflatten(1, (algebra.dim, -1)).square().sum(1)
    return square


def _taken(x: Tensor, places: Tensor, algebra: Algebra) -> Tensor:
    """The numbers of x [N, C, *S] at places [N, Q, *S'] of the flattened S."""
    numbers = x.unflatten(1, (algebra.dim, -1)).flatten(3)
    index = places.flatten(2).unsqueeze(1).expand(-1, algebra.dim, -1, -1)
    taken: Tensor = numbers.gather(3, index).flatten(1, 2).unflatten(2, places.shape[2:])
    return taken.movedim(1, -1).contiguous().movedim(-1, 1) if has_channels_last(x) else taken
