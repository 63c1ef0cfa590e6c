"""Batch norm of d-component numbers in plain PyTorch: the truth that all else is tested against.

    mu = mean x        V = mean (x - mu)(x - mu)^T + eps' I        y = Gamma f(V) (x - mu) + beta

with f(V) = V^(-1/2) (`zca`; Ioffe & Szegedy 2015 for d = 1, Trabelsi et al. 2018 for d = 2) or f(V) = L^(-1), V = L L^T
(`cholesky`; after Gaudet & Maida 2018), or f(V) = diag(V)^(-1/2), each component on its own (`naive`). Differentiable any
number of times, by autograd alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hnetcl.kernels.all_reduce import Group
from hnetcl.kernels.layout import has_channels_last, sum_dtype


class Normalized(NamedTuple):
    """What normalizing by the batch's own statistics gives.

    Args:
        y: like x.
        mean: [C].
        cov: the biased covariance without eps, [C/d, d, d].
        total: values per channel; those of all ranks, where there are several, as a 0-dim tensor.
    """

    y: Tensor
    mean: Tensor
    cov: Tensor
    total: int | Tensor


def batch_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    d: int,
    eps: float,
    whitening: str,
    group: Group | None = None,
) -> Normalized:
    """Normalizes by the batch's own statistics.

    Args:
        x: [N, C, *S], component-major.
        gamma: [C/d, d, d] or None for the identity.
        beta: [C] or None for zero.
        d: components of a number.
        eps: added once to the covariance's diagonal.
        whitening: "zca", "cholesky" or "naive".
        group: the ranks whose batches make up the statistics, which the reference has no code for; None is this one alone.

    Raises:
        ValueError: a group.
    """
    if group is not None:
        raise ValueError("the reference computes no statistics of several ranks: use another backend")
    numbers = _to_matrix(x, d)
    mean = numbers.mean(-1, keepdim=True)
    centred = numbers - mean
    cov = centred @ centred.mT / centred.shape[-1]
    y = _transform(x, centred, cov, gamma, beta, d, eps, whitening)
    return Normalized(y, mean.squeeze(-1).T.reshape(-1), cov, centred.shape[-1])


def normalize(
    x: Tensor, mean: Tensor, cov: Tensor, gamma: Tensor | None, beta: Tensor | None, *, d: int, eps: float, whitening: str
) -> Tensor:
    """Normalizes by given statistics: mean [C] and covariance [C/d, d, d]; the rest as in `batch_norm`."""
    centred = _to_matrix(x, d) - _to_columns(mean, d)
    return _transform(x, centred, cov, gamma, beta, d, eps, whitening)


def regularize(cov: Tensor, eps: float, whitening: str, dtype: torch.dtype) -> Tensor:
    """V' = V + (eps + 4 u tr(V) / d) I in float64 [Q, d, d], with u the rounding unit of the sums that V was made of.

    The second term covers what rounding can take from the smallest eigenvalue, so that V' is positive definite.

    Args:
        cov: V [Q, d, d].
        dtype: of the values that were summed.
    """
    cov = cov.double()
    d = cov.shape[-1]
    eye = torch.eye(d, dtype=cov.dtype, device=cov.device)
    trace = (cov * eye).sum((-2, -1), keepdim=True)
    return cov + (eps + trace_share(d, whitening, dtype) * trace) * eye


def trace_share(d: int, whitening: str, dtype: torch.dtype) -> float:
    """The factor of tr(V) in `regularize`; none where only variances count, which can't be rounded below zero."""
    return 0.0 if d == 1 or whitening == "naive" else 4 * torch.finfo(sum_dtype(dtype)).eps / d


def whiten(cov: Tensor, whitening: str) -> Tensor:
    """W [Q, d, d] of symmetric positive definite V [Q, d, d]; W V W^T = I, of `naive` only its diagonal."""
    if whitening == "zca":
        return inverse_square_root(cov)
    if whitening == "naive":
        return torch.diag_embed(cov.diagonal(dim1=-2, dim2=-1).rsqrt())
    inverse: Tensor = torch.linalg.inv(torch.linalg.cholesky(cov))
    return inverse


def inverse_square_root(cov: Tensor) -> Tensor:
    """V^(-1/2) by the scaled Denman-Beavers iteration (Higham, Functions of Matrices, 2008, section 6.3).

    Unlike the eigendecomposition, it can be differentiated where eigenvalues coincide.
    """
    d = cov.shape[-1]
    root, inverse = cov, torch.eye(d, dtype=cov.dtype, device=cov.device).expand_as(cov)
    for _ in range(20):
        scale = (torch.linalg.det(root) * torch.linalg.det(inverse)).abs()[..., None, None] ** (-1 / (2 * d))
        next_root = (scale * root + torch.linalg.inv(inverse) / scale) / 2
        inverse = (scale * inverse + torch.linalg.inv(root) / scale) / 2
        root = next_root
    return inverse


def _transform(
    x: Tensor,
    centred: Tensor,
    cov: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    d: int,
    eps: float,
    whitening: str,
) -> Tensor:
    matrix = whiten(regularize(cov, eps, whitening, x.dtype), whitening)
    if gamma is not None:
        matrix = gamma.double() @ matrix
    y = matrix.to(centred.dtype) @ centred
    if beta is not None:
        y = y + _to_columns(beta, d)
    return _from_matrix(y, x)


def _to_matrix(x: Tensor, d: int) -> Tensor:
    """[N, C, *S] -> [Q, d, M] with M = N * prod(S), in the precision of sums."""
    n, c, space = *x.shape[:2], x.shape[2:].numel()
    if has_channels_last(x):
        by_position = x.movedim(1, -1).flatten()  # a vector, so that its gradient comes in this order too
        return by_position.view(n * space, d, c // d).permute(2, 1, 0).to(sum_dtype(x.dtype))
    matrix = x.reshape(n, d, c // d, space).permute(2, 1, 0, 3).reshape(c // d, d, n * space)
    return matrix.to(sum_dtype(x.dtype))


def _from_matrix(matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_to_matrix`: [Q, d, M] -> the shape, layout and dtype of `like`."""
    q, d, _ = matrix.shape
    if has_channels_last(like):
        by_position = matrix.permute(2, 1, 0).contiguous()
        return by_position.view(like.shape[0], *like.shape[2:], d * q).movedim(-1, 1).to(like.dtype)
    x = matrix.reshape(q, d, like.shape[0], like.shape[2:].numel()).permute(2, 1, 0, 3)
    return x.reshape(like.shape).to(like.dtype)


def _to_columns(v: Tensor, d: int) -> Tensor:
    """A vector per number: [C] -> [Q, d, 1]."""
    return v.reshape(d, -1).T.unsqueeze(-1)
