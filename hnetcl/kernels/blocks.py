"""The four passes of `passes` on a CPU: in blocks that stay in the cache, each a few batched products of small matrices.

A block holds some numbers of some samples, reordered to [q, d, n * S]. Every operation writes into a buffer that is there
already: fresh memory costs more than the arithmetic, and what writes into a given tensor is left alone by autocast.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from hnetcl.kernels.layout import empty_like_numbers, sum_dtype
from hnetcl.kernels.passes import Passes

BLOCK = 2**19  # values in a block


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype, d = sum_dtype(x.dtype), x.shape[1]
    count = x.shape[0] * x.shape[3]
    mean = x.sum((0, 3), dtype=dtype) / count
    outer = torch.zeros(x.shape[2], d, d, dtype=dtype)
    block = _Block(x, dtype)
    for q, n in _blocks(x):
        centred = block.difference(x, mean, q, n)
        torch.baddbmm(outer[q], centred, centred.mT, out=outer[q])
    return mean, outer / count


def affine(x: Tensor, mean: Tensor, matrix: Tensor, beta: Tensor) -> Tensor:
    y = empty_like_numbers(x)
    block, result = _Block(x, mean.dtype), _Block(x, mean.dtype)
    for q, n in _blocks(x):
        centred = block.difference(x, mean, q, n)
        out = result.like(centred)
        torch.baddbmm(beta[:, q].T.unsqueeze(-1), matrix[q], centred, out=out)
        _write(y, out, q, n)
    return y


def gradient_sums(g: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    d = x.shape[1]
    total = g.sum((0, 3), dtype=mean.dtype)
    outer = torch.zeros(x.shape[2], d, d, dtype=mean.dtype)
    block, gradients = _Block(x, mean.dtype), _Block(x, mean.dtype)
    zero = torch.zeros_like(mean)
    for q, n in _blocks(x):
        centred = block.difference(x, mean, q, n)
        torch.baddbmm(outer[q], gradients.difference(g, zero, q, n), centred.mT, out=outer[q])
    return total, outer


def gradient(g: Tensor, x: Tensor, mean: Tensor, matrix: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
    dx = empty_like_numbers(x)
    block, gradients, result = (_Block(x, mean.dtype) for _ in range(3))
    for q, n in _blocks(x):
        shifted = gradients.difference(g, shift, q, n)
        out = result.like(shifted)
        torch.bmm(matrix[q].mT, shifted, out=out)
        torch.baddbmm(out, factor[q], block.difference(x, mean, q, n), out=out)
        _write(dx, out, q, n)
    return dx


class _Block:
    """A buffer for blocks of x."""

    def __init__(self, x: Tensor, dtype: torch.dtype) -> None:
        n, d, q, s = x.shape
        step_q, step_n = _steps(x)
        self.values = torch.empty(min(q, step_q) * d * min(n, step_n) * s, dtype=dtype)

    def difference(self, x: Tensor, v: Tensor, q: slice, n: slice) -> Tensor:
        """x - v of a block, [q, d, n * S]."""
        numbers = x[n, :, q].permute(2, 1, 0, 3)
        out = self.values[: numbers.numel()].view(numbers.shape)
        torch.sub(numbers, v[:, q].T[:, :, None, None], out=out)
        return out.flatten(2)

    def like(self, block: Tensor) -> Tensor:
        return self.values[: block.numel()].view(block.shape)


def _write(y: Tensor, block: Tensor, q: slice, n: slice) -> None:
    target = y[n, :, q].permute(2, 1, 0, 3)
    target.copy_(block.view(target.shape))


def _steps(x: Tensor) -> tuple[int, int]:
    """Numbers and samples in a block."""
    n, d, _, s = (max(1, size) for size in x.shape)
    return max(1, BLOCK // (d * n * s)), max(1, min(n, BLOCK // (d * s)))


def _blocks(x: Tensor) -> Iterator[tuple[slice, slice]]:
    step_q, step_n = _steps(x)
    for q in range(0, x.shape[2], step_q):
        for n in range(0, x.shape[0], step_n):
            yield slice(q, q + step_q), slice(n, n + step_n)


BLOCKS = Passes(moments, affine, gradient_sums, gradient)
