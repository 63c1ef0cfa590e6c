"""Batch norm under torch.func, where B batches of Q numbers are one batch of B * Q numbers; and under torch's older vmap."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

OLD_VMAP, OLD_VMAP_MODE = map(torch._C._dispatch_key_parse, ("Batched", "VmapMode"))


def is_mapped(*tensors: Tensor | None) -> bool:
    """Whether a tensor stands for the slices of one that vmap maps over; such tensors can't be written into."""
    if torch.compiler.is_compiling():
        return False
    return any(t is not None and _is_mapped(t) for t in tensors)


def _is_mapped(t: Tensor) -> bool:
    while torch._C._functorch.is_gradtrackingtensor(t):  # torch.func.grad wraps what vmap has wrapped
        t = torch._C._functorch.get_unwrapped(t)
    return torch._C._functorch.is_batchedtensor(t)


def learns(t: Tensor) -> bool:
    """Whether a gradient is wanted of t, by autograd or by any transform of torch.func, which hide what is around them."""
    wanted: bool = t.requires_grad
    if wanted or torch.compiler.is_compiling() or not torch._C._functorch.is_functorch_wrapped_tensor(t):
        return wanted
    return learns(torch._C._functorch.get_unwrapped(t))


def merge_numbers(x: Tensor, dim: int | None, size: int, d: int) -> Tensor:
    """[B, N, C, *S] with B at `dim` -> [N, d * B * Q, *S]; shared by all B where dim is None."""
    x = _first(x, dim, size)
    b, n, c, *space = x.shape
    return x.reshape(b, n, d, c // d, *space).movedim(0, 2).reshape(n, b * c, *space)


def merge_vectors(v: Tensor | None, dim: int | None, size: int, d: int) -> Tensor | None:
    """[B, C] -> [d * B * Q]."""
    return None if v is None else _first(v, dim, size).reshape(size, d, -1).movedim(0, 1).reshape(-1)


def merge_matrices(matrices: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """[B, Q, ...] -> [B * Q, ...]."""
    return None if matrices is None else _first(matrices, dim, size).flatten(0, 1)


def part_numbers(y: Tensor, size: int) -> Tensor:
    """[N, d, B * Q, S] -> [N, d, B, Q, S]."""
    return y.reshape(*y.shape[:2], size, -1, y.shape[3])


def part_vectors(v: Tensor, size: int, d: int) -> Tensor:
    """[d * B * Q] -> [B, C]."""
    return v.reshape(d, size, -1).movedim(1, 0).reshape(size, -1)


def part_matrices(matrices: Tensor, size: int) -> Tensor:
    """[B * Q, ...] -> [B, Q, ...]."""
    return matrices.reshape(size, -1, *matrices.shape[1:])


def one_by_one(backward: Callable[[Tensor], tuple[Tensor | None, ...]], g: Tensor) -> tuple[Tensor | None, ...]:
    """backward(g); of several gradients at once (`torch.autograd.grad(is_grads_batched=True)`), what a loop over them gives.

    torch maps over those by its older vmap, which knows too few operations for batch norm.
    """
    if torch.compiler.is_compiling() or not torch._C._dispatch_keys(g).has(OLD_VMAP):
        return backward(g)
    level, gradients = 1, torch._remove_batch_dim(g, 1, 1, 0)
    while torch._C._dispatch_keys(gradients).has(OLD_VMAP):  # g is not of this level, but of one further in
        level += 1
        gradients = torch._remove_batch_dim(g, level, 1, 0)
    torch._C._dispatch_tls_set_dispatch_key_included(OLD_VMAP_MODE, False)  # in which nothing can be compiled
    try:
        found = zip(*[backward(gradient) for gradient in gradients], strict=True)
    finally:
        torch._C._dispatch_tls_set_dispatch_key_included(OLD_VMAP_MODE, True)
    stacks = [None if each[0] is None else torch.stack(each) for each in found]
    return tuple(None if s is None else torch._add_batch_dim(s, 0, level) for s in stacks)


def _first(t: Any, dim: int | None, size: int) -> Tensor:
    value: Tensor = t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
    return value
