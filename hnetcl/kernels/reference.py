"""Batch norm of d-component numbers in plain PyTorch: the truth that all else is tested against.

    mu = mean x        V = mean (x - mu)(x - mu)^T + eps' I        y = Gamma f(V) (x - mu) + beta

with f(V) = V^(-1/2) (`zca`; Ioffe & Szegedy 2015 for d = 1, Trabelsi et al. 2018 for d = 2) or f(V) = L^(-1), V = L L^T
(`cholesky`; after Gaudet & Maida 2018), or f(V) = diag(V)^(-1/2), each
component on its own (`naive`). Differentiable any number of times, by autograd alone.
"""

import torch
from torch import Tensor

from hnetcl.kernels.layout import channels_to_matrix, from_numbers, regularize, to_numbers


def batch_norm(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, *, d: int, eps: float, whitening: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalizes by the batch's own statistics.

    Args:
        x: [N, C, *S], component-major.
        gamma: [C/d, d, d] or None for the identity.
        beta: [C] or None for zero.
        d: components of a number.
        eps: added once to the covariance's diagonal.
        whitening: "zca" or "cholesky".

    Returns:
        y like x, mean [C], biased covariance [C/d, d, d] without eps.
    """
    numbers = to_numbers(x, d)
    mean = numbers.mean(-1, keepdim=True)
    centred = numbers - mean
    cov = centred @ centred.mT / centred.shape[-1]
    y = _transform(x, centred, cov, gamma, beta, d, eps, whitening)
    return y, mean.squeeze(-1).T.reshape(-1), cov


def normalize(
    x: Tensor,
    mean: Tensor,
    cov: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    d: int,
    eps: float,
    whitening: str,
) -> Tensor:
    """Normalizes by given statistics: mean [C] and covariance [C/d, d, d]; the rest as in `batch_norm`."""
    centred = to_numbers(x, d) - channels_to_matrix(mean, d)
    return _transform(x, centred, cov, gamma, beta, d, eps, whitening)


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
        y = y + channels_to_matrix(beta, d)
    return from_numbers(y, x)
