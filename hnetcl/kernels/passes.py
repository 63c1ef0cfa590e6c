"""The passes over memory that batch norm of d-component numbers needs, two forward and two backward, computed in three ways.

    moments          reads x              mu, V without eps
    affine           reads x, writes y    y = A (x - mu) + beta
    gradient_sums    reads g, x           s = sum g,   G = sum g (x - mu)^T
    gradient         reads g, x           dx = A^T (g - shift) + factor (x - mu)

A pass is a pure function of numbers [N, d, Q, S] (N samples, S positions) in any floating dtype; sums are taken in float32, or
in float64 for float64. Between the passes stand the small matrices of `whitening`.

`PLAIN` writes the components out, `BLOCKS` stays in a CPU's cache, `COMPILED` sends `PLAIN` through torch.compile.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hnetcl.compiling import compile_whole
from hnetcl.kernels.autograd import is_mapped
from hnetcl.kernels.layout import empty_numbers, stack_components, sum_dtype
from hnetcl.kernels.whitening import Factors, backward_matrices, forward_matrices

BLOCK_SIZE = 2**19  # values in a block


@dataclass(frozen=True)
class Passes:
    """One way to compute the passes.

    Args:
        moments, affine, gradient_sums, gradient: the passes; see the functions of these names.
        forward_matrices, backward_matrices: what stands between them; see `whitening`.
        forward, backward: all of a forward or a backward by batch statistics in one call, where that is faster than pass by
            pass; see the functions of these names.
    """

    moments: Callable[..., tuple[Tensor, Tensor]]
    affine: Callable[..., Tensor]
    gradient_sums: Callable[..., tuple[Tensor, Tensor]]
    gradient: Callable[..., Tensor]
    forward_matrices: Callable[..., tuple[Tensor, Factors]] = forward_matrices
    backward_matrices: Callable[..., tuple[Tensor, Tensor, Tensor]] = backward_matrices
    forward: Callable[..., tuple[Tensor, Tensor, Tensor, Factors]] | None = None
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None


# Plain: the components are written out, so that a compiler makes one loop of a pass, which reads each of them once.


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d, Q] and biased covariance [Q, d, d] of the centred values (E[x x^T] - mu mu^T would cancel)."""
    x = x.to(sum_dtype(x.dtype))
    count, d = x.shape[0] * x.shape[3], x.shape[1]
    mean = x.sum(3).sum(0) / count
    c = _centred(x, mean)
    upper = {(a, b): _sum(c[a] * c[b]) / count for a in range(d) for b in range(a, d)}
    return mean, _stack([[upper[min(a, b), max(a, b)] for b in range(d)] for a in range(d)])


def affine(x: Tensor, mean: Tensor, matrix: Tensor, beta: Tensor) -> Tensor:
    """A (x - mu) + beta in the dtype and layout of x; mean and beta [d, Q], A [Q, d, d]."""
    y = _apply(matrix, _centred(x, mean))
    return stack_components([(c + _broadcast(b)).to(x.dtype) for c, b in zip(y, beta.unbind(0), strict=True)], x)


def gradient_sums(g: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """s = sum g [d, Q] and G = sum g (x - mu)^T [Q, d, d]."""
    g, centred = g.to(mean.dtype), _centred(x, mean)
    return g.sum(3).sum(0), _stack([[_sum(a * b) for b in centred] for a in g.unbind(1)])


def gradient(g: Tensor, x: Tensor, mean: Tensor, matrix: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
    """dx = A^T (g - shift) + factor (x - mu), like x; shift [d, Q], the matrices [Q, d, d]."""
    from_g, from_x = _apply(matrix.mT, _centred(g, shift)), _apply(factor, _centred(x, mean))
    return stack_components([(a + b).to(x.dtype) for a, b in zip(from_g, from_x, strict=True)], x)


def _broadcast(v: Tensor) -> Tensor:
    """[Q] -> [1, Q, 1]."""
    return v.unsqueeze(0).unsqueeze(-1)


def _centred(x: Tensor, mean: Tensor) -> list[Tensor]:
    """The d components of x - mu, [N, Q, S] each."""
    return [c.to(mean.dtype) - _broadcast(m) for c, m in zip(x.unbind(1), mean.unbind(0), strict=True)]


def _apply(matrix: Tensor, components: list[Tensor]) -> list[Tensor]:
    """The components of every number's matrix [Q, d, d] times the number."""
    result = []
    for line in matrix.unbind(1):
        entries = line.unbind(1)
        y = components[0] * _broadcast(entries[0])
        for component, entry in zip(components[1:], entries[1:], strict=True):
            y = torch.addcmul(y, component, _broadcast(entry))
        result.append(y)
    return result


def _sum(component: Tensor) -> Tensor:
    """Over samples and positions: [N, Q, S] -> [Q]."""
    return component.sum(2).sum(0)


def _stack(entries: list[list[Tensor]]) -> Tensor:
    """d x d vectors [Q] -> [Q, d, d]."""
    return torch.stack([torch.stack(line, -1) for line in entries], -2)


PLAIN = Passes(moments, affine, gradient_sums, gradient)


def forward(
    x: Tensor, gamma: Tensor | None, beta: Tensor, eps: float, whitening: str, passes: Passes = PLAIN
) -> tuple[Tensor, Tensor, Tensor, Factors]:
    """y, mean [d, Q], covariance [Q, d, d], and the factors that backward needs; beta [d, Q]."""
    mean, cov = passes.moments(x)
    matrix, factors = passes.forward_matrices(cov, gamma, eps, whitening, mean.dtype)
    return passes.affine(x, mean, matrix, beta), mean, cov, factors


def backward(
    g: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    mean: Tensor,
    count: Tensor,
    factors: Factors,
    whitening: str,
    passes: Passes = PLAIN,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dGamma [Q, d, d] and s [d, Q]."""
    total, outer = passes.gradient_sums(g, x, mean)
    matrix, dgamma, dcov = passes.backward_matrices(outer, gamma, factors, whitening, mean.dtype)
    return passes.gradient(g, x, mean, matrix, total / count, dcov * (2 / count)), dgamma, total


# Blocks: some numbers of some samples at a time, reordered to [q, d, n * S], so that a pass is a few batched products of small
# matrices. Every operation writes into a buffer that is there already: fresh memory costs more than the arithmetic, and what
# writes into a given tensor is left alone by autocast.


def _moments_in_blocks(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype, d = sum_dtype(x.dtype), x.shape[1]
    count = x.shape[0] * x.shape[3]
    mean = x.sum((0, 3), dtype=dtype) / count
    outer = torch.zeros(x.shape[2], d, d, dtype=dtype)
    block = _Block(x, dtype)
    for q, n in _blocks(x):
        centred = block.difference(x, mean, q, n)
        torch.baddbmm(outer[q], centred, centred.mT, out=outer[q])
    return mean, outer / count


def _affine_in_blocks(x: Tensor, mean: Tensor, matrix: Tensor, beta: Tensor) -> Tensor:
    y = empty_numbers(x)
    block, result = _Block(x, mean.dtype), _Block(x, mean.dtype)
    for q, n in _blocks(x):
        centred = block.difference(x, mean, q, n)
        out = result.like(centred)
        torch.baddbmm(beta[:, q].T.unsqueeze(-1), matrix[q], centred, out=out)
        _write(y, out, q, n)
    return y


def _gradient_sums_in_blocks(g: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    d = x.shape[1]
    total = g.sum((0, 3), dtype=mean.dtype)
    outer = torch.zeros(x.shape[2], d, d, dtype=mean.dtype)
    block, gradients = _Block(x, mean.dtype), _Block(x, mean.dtype)
    zero = torch.zeros_like(mean)
    for q, n in _blocks(x):
        centred = block.difference(x, mean, q, n)
        torch.baddbmm(outer[q], gradients.difference(g, zero, q, n), centred.mT, out=outer[q])
    return total, outer


def _gradient_in_blocks(g: Tensor, x: Tensor, mean: Tensor, matrix: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
    dx = empty_numbers(x)
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
    return max(1, BLOCK_SIZE // (d * n * s)), max(1, min(n, BLOCK_SIZE // (d * s)))


def _blocks(x: Tensor) -> Iterator[tuple[slice, slice]]:
    step_q, step_n = _steps(x)
    for q in range(0, x.shape[2], step_q):
        for n in range(0, x.shape[0], step_n):
            yield slice(q, q + step_q), slice(n, n + step_n)


BLOCKS = Passes(_moments_in_blocks, _affine_in_blocks, _gradient_sums_in_blocks, _gradient_in_blocks)


# Compiled: one loop over memory on a CPU, one kernel on a GPU. The first call for a kind of tensor takes seconds, for it
# compiles; sizes are symbolic, so that others reuse what it made.


class _Compiled:
    """A function that is compiled once for every kind of arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.variants: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *args: Any) -> Any:
        args = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)  # a derivative is never taken through a pass
        kind = tuple(map(_kind, args)), torch.is_grad_enabled()
        if kind not in self.variants:
            self.variants[kind] = compile_whole(self.function, dynamic=True)
        return self.variants[kind](*args)


def _kind(value: Any) -> Any:
    """What a compiled function depends on: all but the sizes, of which 1 is special to torch's compiler."""
    if isinstance(value, Tensor):
        return value.dtype, value.device, tuple(size == 1 for size in value.shape), value.is_contiguous()
    return tuple(map(_kind, value)) if isinstance(value, Factors) else value


COMPILED = Passes(
    _Compiled(moments),
    _Compiled(affine),
    _Compiled(gradient_sums),
    _Compiled(gradient),
    forward_matrices=_Compiled(forward_matrices),
    backward_matrices=_Compiled(backward_matrices),
    forward=_Compiled(forward),
    backward=_Compiled(backward),
)


def usable(passes: Passes, x: Tensor, *others: Tensor | None) -> Passes:
    """The passes; or the plain ones where those can't work: in a graph being compiled, under vmap, and blocks on a GPU."""
    if torch.compiler.is_compiling() or is_mapped(x, *others):
        return PLAIN
    return PLAIN if passes is BLOCKS and not x.is_cpu else passes
