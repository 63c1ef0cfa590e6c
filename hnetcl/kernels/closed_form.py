"""Batch norm of d-component numbers with its derivative in closed form: saves x and d x d matrices, nothing else.

With g = dL/dy, A = Gamma W and W = f(V):

    s = sum g    G = sum g (x - mu)^T    dbeta = s    dGamma = G W^T    P = Gamma^T G
    S = dL/dV:   zca       S = -U [(U^T sym(P) U)_ij / (k_i k_j (k_i + k_j))] U^T,   V = U diag(k^2) U^T
                 cholesky  S = -W^T sym(Phi(P W^T)) W,   Phi = lower triangle with halved diagonal
    batch statistics:  dx = A^T (g - s / M) + (2 / M) S (x - mu)
    given statistics:  dx = A^T g,   dmu = -A^T s,   dV = S

Signatures and results are those of `reference`. The small matrices are handled in float64 and written out by hand where
d <= 2 or f is Cholesky, so that no call checks for errors (a sync on a GPU) or raises where a floor serves.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hnetcl.kernels.layout import regularize, sum_dtype, trace_share

TINY = 1e-60  # below any variance that float32 sums can mean; keeps roots and the products of their inverses finite


def batch_norm(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, *, d: int, eps: float, whitening: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalizes by the batch's own statistics; see `reference.batch_norm`. Mean and covariance carry no graph."""
    if d == 1:
        return _real_batch_norm(x, gamma, beta, eps)
    y, mean, cov, *_ = _BatchStatistics.apply(x, gamma, beta, d, eps, whitening)
    return y.reshape(x.shape), mean, cov


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
    """Normalizes by given statistics, which gradients reach; see `reference.normalize`."""
    if d == 1 and not (mean.requires_grad or cov.requires_grad):
        return _torch_batch_norm(x, mean, cov.reshape(-1), gamma, beta, eps, training=False)
    y: Tensor = _GivenStatistics.apply(x, mean, cov, gamma, beta, d, eps, whitening)[0]
    return y.reshape(x.shape)


def _real_batch_norm(x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """torch's own kernel; momentum 1 makes it hand out the batch's statistics."""
    c, m = x.shape[1], x.numel() // x.shape[1]
    mean, var = torch.zeros(2, c, dtype=sum_dtype(x.dtype), device=x.device)
    y = _torch_batch_norm(x, mean, var, gamma, beta, eps, training=True)
    return y, mean, (var * ((m - 1) / m)).reshape(c, 1, 1)


def _torch_batch_norm(
    x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, training: bool
) -> Tensor:
    dtype = sum_dtype(x.dtype)
    weight = None if gamma is None else gamma.reshape(-1).to(dtype)
    bias = None if beta is None else beta.to(dtype)
    return F.batch_norm(x, mean.to(dtype), var.to(dtype), weight, bias, training=training, momentum=1.0, eps=eps)


# The functions return numbers [N, d, Q, S], shaped like x only outside of them: what is a view inside a function can't be
# changed in place after it, as ReLU(inplace=True) does.


class _BatchStatistics(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, gamma: Tensor | None, beta: Tensor | None, d: int, eps: float, whitening: str) -> tuple[Tensor, ...]:
        numbers = _split(x, d)
        mean = numbers.mean((0, 3))
        centred = numbers - _broadcast(mean)
        cov = _outer(centred, centred) / (x.numel() // x.shape[1])
        matrix, *factors = _whiten(regularize(cov, eps, x.dtype), whitening)
        y = _affine(centred, matrix, gamma, beta)
        return y.to(x.dtype), mean.reshape(-1), cov, matrix, *factors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, gamma, _, ctx.d, _, ctx.whitening = inputs
        _, mean, cov, *factors = output
        ctx.mark_non_differentiable(mean, cov, *factors)
        ctx.save_for_backward(x, gamma, mean, *factors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, gamma, mean, *factors = ctx.saved_tensors
        centred = _split(x, ctx.d) - _broadcast(mean.reshape(ctx.d, -1))
        g = grad.to(centred.dtype)
        m = x.numel() // x.shape[1]
        total, dgamma, matrix, dcov = _small(g, centred, gamma, factors, ctx.whitening, x.dtype)
        dx = _apply(matrix.mT, g - _broadcast(total / m)).add_(_apply(dcov * (2 / m), centred))
        dbeta = total.reshape(-1) if ctx.needs_input_grad[2] else None
        return dx.reshape(x.shape).to(x.dtype), _like(dgamma, gamma), dbeta, None, None, None


class _GivenStatistics(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        mean: Tensor,
        cov: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        d: int,
        eps: float,
        whitening: str,
    ) -> tuple[Tensor, ...]:
        centred = _split(x, d) - _broadcast(mean.reshape(d, -1))
        matrix, *factors = _whiten(regularize(cov, eps, x.dtype), whitening)
        y = _affine(centred, matrix, gamma, beta)
        return y.to(x.dtype), matrix, *factors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, mean, cov, gamma, _, ctx.d, _, ctx.whitening = inputs
        _, *factors = output
        ctx.mark_non_differentiable(*factors)
        ctx.save_for_backward(x, mean, cov, gamma, *factors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, mean, cov, gamma, *factors = ctx.saved_tensors
        centred = _split(x, ctx.d) - _broadcast(mean.reshape(ctx.d, -1))
        g = grad.to(centred.dtype)
        total, dgamma, matrix, dcov = _small(g, centred, gamma, factors, ctx.whitening, x.dtype)
        dx = _apply(matrix.mT, g).reshape(x.shape).to(x.dtype)
        dmean = -_apply(matrix.mT, _broadcast(total)).reshape(-1).to(mean.dtype)
        dbeta = total.reshape(-1) if ctx.needs_input_grad[4] else None
        return dx, dmean, dcov.to(cov.dtype), _like(dgamma, gamma), dbeta, None, None, None


def _split(x: Tensor, d: int) -> Tensor:
    """[N, C, *S] -> [N, d, Q, prod(S)] in the precision of sums: a view of x unless that is half precision."""
    return x.to(sum_dtype(x.dtype)).reshape(x.shape[0], d, x.shape[1] // d, x.shape[2:].numel())


def _broadcast(v: Tensor) -> Tensor:
    """[d, Q] -> [1, d, Q, 1]."""
    return v.unsqueeze(0).unsqueeze(-1)


def _apply(matrix: Tensor, numbers: Tensor) -> Tensor:
    """The matrix of every number times the number: [Q, d, d], [N, d, Q, S] -> [N, d, Q, S].

    One multiply-add over the whole tensor for each component: batched matrix products would copy it twice to reorder it,
    and are slow for matrices so small.
    """
    columns = [_broadcast(column.T) for column in matrix.unbind(-1)]
    y = columns[0] * numbers[:, :1]
    for b in range(1, len(columns)):
        y = y.addcmul(columns[b], numbers[:, b : b + 1])
    return y


def _outer(u: Tensor, v: Tensor) -> Tensor:
    """sum u v^T over batch and space: [N, d, Q, S] twice -> [Q, d, d]."""
    return torch.stack([(u * v[:, b : b + 1]).sum((0, 3)).T for b in range(v.shape[1])], -1)


def _affine(centred: Tensor, matrix: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """A (x - mu) + beta for centred numbers [N, d, Q, S]."""
    matrix = matrix if gamma is None else gamma.double() @ matrix
    y = _apply(matrix.to(centred.dtype), centred)
    return y if beta is None else y + _broadcast(beta.to(y.dtype).reshape(centred.shape[1], -1))


def _small(
    g: Tensor, centred: Tensor, gamma: Tensor | None, factors: list[Tensor], whitening: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All of the backward pass that works on Q matrices: s [d, Q], dGamma, A and dL/dV, the latter three [Q, d, d]."""
    w = factors[0]
    outer = _outer(g, centred).double()
    p = outer if gamma is None else gamma.double().mT @ outer
    dcov = _whiten_backward(p, factors, whitening)
    trace = dcov.diagonal(dim1=-2, dim2=-1).sum(-1)
    shift = trace_share(w.shape[-1], dtype) * trace
    dcov = dcov + shift[..., None, None] * torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
    matrix = w if gamma is None else gamma.double() @ w
    return g.sum((0, 3)), outer @ w.mT, matrix.to(g.dtype), dcov.to(g.dtype)


def _like(grad: Tensor, value: Tensor | None) -> Tensor | None:
    return None if value is None else grad.to(value.dtype)


def _whiten(cov: Tensor, whitening: str) -> tuple[Tensor, ...]:
    """W, and for `zca` also the eigenvectors U and the roots k of the eigenvalues."""
    if whitening == "cholesky":
        return (_inverse_cholesky(cov),)
    values, u = _eigh(cov)
    k = values.clamp_min(TINY).sqrt()
    return (u / k.unsqueeze(-2)) @ u.mT, u, k


def _whiten_backward(p: Tensor, factors: list[Tensor], whitening: str) -> Tensor:
    """S = dL/dV from P = dL/dW."""
    if whitening == "cholesky":
        (w,) = factors
        lower = (p @ w.mT).tril()
        lower = lower - lower.diagonal(dim1=-2, dim2=-1).diag_embed() / 2
        return -(w.mT @ _symmetric(lower) @ w)
    _, u, k = factors
    row, column = k.unsqueeze(-1), k.unsqueeze(-2)
    return -(u @ ((u.mT @ _symmetric(p) @ u) / (row * column * (row + column))) @ u.mT)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


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
    """Eigenvalues [Q, d] and eigenvectors [Q, d, d] of a symmetric matrix."""
    if cov.shape[-1] != 2:
        values, vectors = torch.linalg.eigh(cov)
        return values, vectors
    a, b, c = cov[..., 0, 0], cov[..., 0, 1], cov[..., 1, 1]
    centre, radius = (a + c) / 2, torch.hypot((a - c) / 2, b)
    large = centre + radius
    small = (a * c - b * b) / large.clamp_min(TINY)  # not centre - radius, which cancels
    angle = torch.atan2(b, (a - c) / 2) / 2
    cos, sin = angle.cos(), angle.sin()
    rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    return torch.stack([large, small], -1), rotation
