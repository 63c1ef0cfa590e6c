"""How component-major channels become numbers of d components, and back.

Channels [N, C, *S] seen as *numbers* [N, d, Q, S]: N samples, Q = C / d numbers at each of S positions. All that is made of x
lies in memory as x does, channels last or not.
"""

from typing import Any

import torch
from torch import Tensor


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Sums over half-precision values are taken in float32."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def to_numbers(x: Tensor, d: int) -> Tensor:
    """[N, C, *S] -> numbers [N, d, Q, prod(S)], a view where strides allow it."""
    return x.reshape(x.shape[0], d, x.shape[1] // d, x.shape[2:].numel())


def complex_to_real(x: Tensor) -> Tensor:
    """Complex [N, Q, *S] -> component-major [N, 2 Q, *S]."""
    if has_channels_last(x):
        return torch.view_as_real(x.movedim(1, -1)).mT.flatten(-2).movedim(-1, 1)
    return torch.view_as_real(x).movedim(-1, 1).flatten(1, 2)


def real_to_complex(x: Tensor) -> Tensor:
    """The inverse of `complex_to_real`."""
    if has_channels_last(x):
        return torch.view_as_complex(x.movedim(1, -1).unflatten(-1, (2, -1)).mT.contiguous()).movedim(-1, 1)
    return torch.view_as_complex(x.unflatten(1, (2, -1)).movedim(1, -1).contiguous())


def has_channels_last(x: Tensor) -> bool:
    """Whether the channels of one position of x [N, C, *S] lie next to each other in memory.

    Told by strides, which tensors that torch.func maps over have too.
    """
    return x.ndim > 2 and 0 < x.stride(1) < x.stride(-1)


def _have_channels_last(x: Tensor) -> bool:
    """The same of numbers [N, d, Q, S]."""
    return 0 < x.stride(1 if x.shape[1] > 1 else 2) < x.stride(3)


def stack_components(components: list[Tensor], like: Tensor) -> Tensor:
    """d components [N, Q, S] -> numbers [N, d, Q, S], laid out as the numbers `like` are."""
    if _have_channels_last(like):
        return torch.stack([component.mT for component in components], 2).permute(0, 2, 3, 1)
    return torch.stack(components, 1)


def empty_numbers(like: Tensor) -> Tensor:
    """Room for numbers [N, d, Q, S], laid out as the numbers `like` are."""
    n, d, q, s = like.shape
    if _have_channels_last(like):
        return like.new_empty(n, s, d, q).permute(0, 2, 3, 1)
    return like.new_empty(like.shape)


def lay_out(g: Tensor, like: Tensor) -> Tensor:
    """Numbers g, copied where they are not laid out as the numbers `like` are."""
    last = _have_channels_last(like)
    if _have_channels_last(g) == last:
        return g
    return g.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) if last else g.contiguous()


# Under torch.func.vmap, B batches of Q numbers each become one batch of B * Q numbers. B stands at `dim`; None: all share one.


def merge_channels(x: Tensor, dim: int | None, size: int, d: int) -> Tensor:
    """[B, N, C, *S] -> [N, d * B * Q, *S]."""
    x = _first(x, dim, size)
    b, n, c, *space = x.shape
    return x.reshape(b, n, d, c // d, *space).movedim(0, 2).reshape(n, b * c, *space)


def merge_vectors(v: Tensor | None, dim: int | None, size: int, d: int) -> Tensor | None:
    """[B, C] -> [d * B * Q]."""
    return None if v is None else _first(v, dim, size).reshape(size, d, -1).movedim(0, 1).reshape(-1)


def merge_matrices(matrices: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """[B, Q, ...] -> [B * Q, ...]."""
    return None if matrices is None else _first(matrices, dim, size).flatten(0, 1)


def _first(t: Any, dim: int | None, size: int) -> Tensor:
    value: Tensor = t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
    return value
