"""Whitening matrices W = f(V) of d x d covariances, and their derivative in closed form.

    zca       W = V^(-1/2)                  S = -U [(U^T sym(P) U)_ij / (k_i k_j (k_i + k_j))] U^T,   V = U diag(k^2) U^T
    cholesky  W = L^(-1), V = L L^T         S = -W^T sym(Phi(P W^T)) W,   Phi = lower triangle with halved diagonal
    naive     W = diag(V)^(-1/2)            S = -1/2 diag(P) W^3

with P = dL/dW and S = dL/dV. In float64, and written out by hand where d <= 2 or f is Cholesky, so that no call checks for
errors (a sync on a GPU) or raises where a floor serves.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hnetcl.kernels.reference import regularize, trace_share

WHITENINGS = ("zca", "cholesky", "naive")
TINY = 1e-60  # below any variance that float32 sums can mean; keeps roots and the products of their inverses finite


class Factors(NamedTuple):
    """What the derivative of a whitening needs, in float64.

    Args:
        w: W [Q, d, d].
        u: the eigenvectors U [Q, d, d] of V, for `zca`.
        k: the roots [Q, d] of its eigenvalues, for `zca`.
    """

    w: Tensor
    u: Tensor | None = None
    k: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Those that there are; `Factors(*tensors)` is the way back."""
        return [factor for factor in self if factor is not None]


def forward_matrices(
    cov: Tensor, gamma: Tensor | None, eps: float, whitening: str, dtype: torch.dtype
) -> tuple[Tensor, Factors]:
    """From V without eps [Q, d, d]: A = Gamma W [Q, d, d] in the dtype of sums, and what `backward_matrices` needs."""
    factors = whiten(regularize(cov, eps, whitening, dtype), whitening)
    return _product(factors.w, gamma, dtype), factors


def backward_matrices(
    outer: Tensor, gamma: Tensor | None, factors: Factors, whitening: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """From G = sum g (x - mu)^T: A in the dtype of sums, dGamma and dL/dV, all [Q, d, d]."""
    w, outer = factors.w, outer.double()
    dcov = whiten_backward(outer if gamma is None else gamma.double().mT @ outer, factors, whitening)
    eye = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
    trace = (dcov * eye).sum((-2, -1), keepdim=True)
    dcov = dcov + trace_share(w.shape[-1], whitening, dtype) * trace * eye
    return _product(w, gamma, dtype), outer @ w.mT, dcov.to(dtype)


def whiten(cov: Tensor, whitening: str) -> Factors:
    """W of V [Q, d, d], which has its eps already."""
    if whitening == "cholesky":
        return Factors(_inverse_cholesky(cov))
    if whitening == "naive":
        return Factors(_diagonal(cov).clamp_min(TINY).rsqrt() * torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device))
    values, u = _eigh(cov)
    k = values.clamp_min(TINY).sqrt()
    return Factors((u / k.unsqueeze(-2)) @ u.mT, u, k)


def whiten_backward(p: Tensor, factors: Factors, whitening: str) -> Tensor:
    """S = dL/dV from P = dL/dW, both [Q, d, d]."""
    w, u, k = factors
    if whitening == "cholesky":
        lower = (p @ w.mT).tril() * (1 - torch.eye(w.shape[-1], dtype=w.dtype, device=w.device) / 2)
        return -(w.mT @ _symmetric(lower) @ w)
    if whitening == "naive":
        return p * w**3 / -2
    assert u is not None
    assert k is not None
    k_i, k_j = k.unsqueeze(-1), k.unsqueeze(-2)
    return -(u @ ((u.mT @ _symmetric(p) @ u) / (k_i * k_j * (k_i + k_j))) @ u.mT)


def _product(w: Tensor, gamma: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (w if gamma is None else gamma.double() @ w).to(dtype)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def _diagonal(matrix: Tensor) -> Tensor:
    """[Q, d, d] -> [Q, d, 1], written without `diagonal`, which torch's compiler warns of."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return (matrix * eye).sum(-1, keepdim=True)


def _inverse_cholesky(cov: Tensor) -> Tensor:
    """L^(-1), column by column; a pivot that rounding made negative is floored."""
    d = cov.shape[-1]
    low: dict[tuple[int, int], Tensor] = {}
    inv: dict[tuple[int, int], Tensor] = {}
    zero = torch.zeros_like(cov[..., 0, 0])
    for j in range(d):
        pivot = cov[..., j, j] - sum((low[j, k] ** 2 for k in range(j)), zero)
        inv[j, j] = pivot.clamp_min(TINY).rsqrt()
        for i in range(j + 1, d):
            low[i, j] = (cov[..., i, j] - sum((low[i, k] * low[j, k] for k in range(j)), zero)) * inv[j, j]
    for j in range(d):
        for i in range(j + 1, d):
            inv[i, j] = -inv[i, i] * sum((low[i, k] * inv[k, j] for k in range(j, i)), zero)
    return torch.stack([torch.stack([inv.get((i, j), zero) for j in range(d)], -1) for i in range(d)], -2)


def _eigh(cov: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [Q, d] and eigenvectors [Q, d, d] of a symmetric matrix; nan where it is not finite."""
    if cov.shape[-1] == 1:
        return cov.squeeze(-1), torch.ones_like(cov)
    if cov.shape[-1] != 2:
        finite = cov.isfinite().all(-1).all(-1, keepdim=True)
        values, vectors = torch.linalg.eigh(torch.where(finite.unsqueeze(-1), cov, 0))  # which raises otherwise
        return torch.where(finite, values, torch.nan), vectors
    a, b, c = cov[..., 0, 0], cov[..., 0, 1], cov[..., 1, 1]
    centre, radius = (a + c) / 2, torch.hypot((a - c) / 2, b)
    large = centre + radius
    small = (a * c - b * b) / large.clamp_min(TINY)  # not centre - radius, which cancels
    angle = torch.atan2(b, (a - c) / 2) / 2
    cos, sin = angle.cos(), angle.sin()
    rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    return torch.stack([large, small], -1), rotation
