"""How channels become numbers and back, and in which precision they are summed."""

import torch
from torch import Tensor


def to_numbers(x: Tensor, d: int) -> Tensor:
    """[N, C, *S] component-major -> [Q, d, M] with Q = C / d and M = N * prod(S), in the precision of sums."""
    n, c, space = *x.shape[:2], x.shape[2:].numel()
    if has_channels_last(x):
        by_place = x.movedim(1, -1).flatten()  # a vector, so that its gradient comes in this order too
        return by_place.view(n * space, d, c // d).permute(2, 1, 0).to(sum_dtype(x.dtype))
    numbers = x.reshape(n, d, c // d, space).permute(2, 1, 0, 3).reshape(c // d, d, n * space)
    return numbers.to(sum_dtype(x.dtype))


def from_numbers(numbers: Tensor, like: Tensor) -> Tensor:
    """The inverse of `to_numbers`: [Q, d, M] -> the shape, layout and dtype of `like`."""
    q, d, _ = numbers.shape
    if has_channels_last(like):
        by_place = numbers.permute(2, 1, 0).contiguous()
        return by_place.view(like.shape[0], *like.shape[2:], d * q).movedim(-1, 1).to(like.dtype)
    x = numbers.reshape(q, d, like.shape[0], like.shape[2:].numel()).permute(2, 1, 0, 3)
    return x.reshape(like.shape).to(like.dtype)


def channels_to_matrix(v: Tensor, d: int) -> Tensor:
    """A vector per number: [C] component-major -> [Q, d, 1]."""
    return v.reshape(d, -1).T.unsqueeze(-1)


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Sums over half-precision values are taken in float32."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def split(x: Tensor, d: int) -> Tensor:
    """[N, C, *S] -> numbers [N, d, Q, prod(S)]."""
    return x.reshape(x.shape[0], d, x.shape[1] // d, x.shape[2:].numel())


def has_channels_last(x: Tensor) -> bool:
    """Whether the channels of one place of x [N, C, *S] lie next to each other in memory.

    Told by strides, which tensors that torch.func maps over have too.
    """
    return x.ndim > 2 and 0 < x.stride(1) < x.stride(-1)


def _have_channels_last(x: Tensor) -> bool:
    """The same of numbers [N, d, Q, S]."""
    return 0 < x.stride(1 if x.shape[1] > 1 else 2) < x.stride(3)


def numbers_like(x: Tensor, parts: list[Tensor]) -> Tensor:
    """Components [N, Q, S], d of them -> numbers [N, d, Q, S], laid out like x."""
    if _have_channels_last(x):
        return torch.stack([part.mT for part in parts], 2).permute(0, 2, 3, 1)
    return torch.stack(parts, 1)


def empty_like_numbers(x: Tensor) -> Tensor:
    """Room for numbers [N, d, Q, S], laid out like x."""
    n, d, q, s = x.shape
    if _have_channels_last(x):
        return x.new_empty(n, s, d, q).permute(0, 2, 3, 1)
    return x.new_empty(x.shape)


def owned(y: Tensor) -> Tensor:
    """y as an autograd function may return it: a view could not be changed in place after that, as ReLU(inplace=True) does."""
    return y if torch.compiler.is_compiling() or not y._is_view() else y.data


def lay_out(g: Tensor, x: Tensor) -> Tensor:
    """Numbers g in the layout of x."""
    last = _have_channels_last(x)
    if _have_channels_last(g) == last:
        return g
    return g.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) if last else g.contiguous()


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


def regularize(cov: Tensor, eps: float, whitening: str, dtype: torch.dtype) -> Tensor:
    """V' = V + (eps + 4 u tr(V) / d) I in float64, with u the rounding unit of the sums that V was made of.

    The second term covers what rounding can take from the smallest eigenvalue, so that V' is positive definite.
    """
    cov = cov.double()
    d = cov.shape[-1]
    eye = torch.eye(d, dtype=cov.dtype, device=cov.device)
    trace = (cov * eye).sum((-2, -1), keepdim=True)
    return cov + (eps + trace_share(d, whitening, dtype) * trace) * eye


def trace_share(d: int, whitening: str, dtype: torch.dtype) -> float:
    """The factor of tr(V) in `regularize`; none where only variances count, which can't be rounded below zero."""
    return 0.0 if d == 1 or whitening == "naive" else 4 * torch.finfo(sum_dtype(dtype)).eps / d
