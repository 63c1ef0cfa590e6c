"""The four passes over memory that batch norm of d-component numbers needs, two forward and two backward.

A pass is a pure function of numbers [N, d, Q, S] (N samples, S positions) in any floating dtype; sums are taken in float32, or
in float64 for float64. The loops over components are written out: each line is one operation over the whole tensor, and a
compiler can make one loop of a pass.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hnetcl.kernels import whitening
from hnetcl.kernels.layout import sum_dtype


@dataclass(frozen=True)
class Passes:
    """One way to compute the passes, and the small matrices between them (see `whitening`).

    `forward` and `backward`, where given, do all of a forward or backward pass by batch statistics in one call: see `forward`
    and `backward` below.
    """

    moments: Callable[..., tuple[Tensor, Tensor]]
    affine: Callable[..., Tensor]
    gradient_sums: Callable[..., tuple[Tensor, Tensor]]
    gradient: Callable[..., Tensor]
    forward_matrices: Callable[..., tuple[Tensor, list[Tensor]]] = whitening.forward_matrices
    backward_matrices: Callable[..., tuple[Tensor, Tensor, Tensor]] = whitening.backward_matrices
    forward: Callable[..., tuple[Tensor, Tensor, Tensor, list[Tensor]]] | None = None
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Reads x: mean [d, Q] and biased covariance [Q, d, d] of the centred values (E[x x^T] - mu mu^T would cancel)."""
    x = x.to(sum_dtype(x.dtype))
    count = x.shape[0] * x.shape[3]
    mean = x.sum(3).sum(0) / count
    centred = x - _broadcast(mean)
    return mean, _outer(centred, centred) / count


def affine(x: Tensor, mean: Tensor, matrix: Tensor, beta: Tensor) -> Tensor:
    """Reads x, writes y = A (x - mu) + beta in its dtype; mean and beta [d, Q], A [Q, d, d]."""
    centred = x.to(mean.dtype) - _broadcast(mean)
    return (_apply(matrix, centred) + _broadcast(beta)).to(x.dtype)


def gradient_sums(g: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Reads g and x: s = sum g [d, Q] and G = sum g (x - mu)^T [Q, d, d]."""
    g = g.to(mean.dtype)
    return g.sum(3).sum(0), _outer(g, x.to(mean.dtype) - _broadcast(mean))


def gradient(g: Tensor, x: Tensor, mean: Tensor, matrix: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
    """Reads g and x, writes dx = A^T (g - shift) + factor (x - mu) in the dtype of x; shift [d, Q], the matrices [Q, d, d]."""
    centred = x.to(mean.dtype) - _broadcast(mean)
    return (_apply(matrix.mT, g.to(mean.dtype) - _broadcast(shift)) + _apply(factor, centred)).to(x.dtype)


def _broadcast(v: Tensor) -> Tensor:
    """[d, Q] -> [1, d, Q, 1]."""
    return v.unsqueeze(0).unsqueeze(-1)


def _apply(matrix: Tensor, numbers: Tensor) -> Tensor:
    """The matrix of every number times the number: [Q, d, d], [N, d, Q, S] -> [N, d, Q, S].

    Batched matrix products would copy the tensor twice to reorder it, and are slow for matrices so small.
    """
    columns = [_broadcast(column) for column in matrix.permute(2, 1, 0).contiguous()]  # contiguous, so that the result is
    y = numbers[:, :1] * columns[0]
    for b in range(1, len(columns)):
        y = y.addcmul(columns[b], numbers[:, b : b + 1])
    return y


def _outer(u: Tensor, v: Tensor) -> Tensor:
    """sum u v^T over samples and positions: [N, d, Q, S] twice -> [Q, d, d]."""
    return torch.stack([(u * v[:, b : b + 1]).sum(3).sum(0).T for b in range(v.shape[1])], -1)


PLAIN = Passes(moments, affine, gradient_sums, gradient)


def forward(
    x: Tensor, gamma: Tensor | None, beta: Tensor, eps: float, kind: str, passes: Passes = PLAIN
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """y, mean [d, Q], covariance [Q, d, d], and the factors of W that backward needs; beta [d, Q]."""
    mean, cov = passes.moments(x)
    matrix, factors = passes.forward_matrices(cov, gamma, eps, kind, mean.dtype)
    return passes.affine(x, mean, matrix, beta), mean, cov, factors


def backward(
    g: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    mean: Tensor,
    count: Tensor,
    factors: list[Tensor],
    kind: str,
    passes: Passes = PLAIN,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dGamma [Q, d, d] and s [d, Q]."""
    total, outer = passes.gradient_sums(g, x, mean)
    matrix, dgamma, dcov = passes.backward_matrices(outer, gamma, factors, kind, mean.dtype)
    return passes.gradient(g, x, mean, matrix, total / count, dcov * (2 / count)), dgamma, total
