"""The four passes over memory that batch norm of d-component numbers needs, two forward and two backward.

A pass is a pure function of numbers [N, d, Q, S] (N samples, S positions) in any floating dtype; sums are taken in float32, or
in float64 for float64. The components are written out, so that a compiler makes one loop of a pass, which reads each of
them once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hnetcl.kernels import whitening
from hnetcl.kernels.layout import numbers_like, sum_dtype


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
    count, d = x.shape[0] * x.shape[3], x.shape[1]
    mean = x.sum(3).sum(0) / count
    c = _centred(x, mean)
    upper = {(a, b): _sum(c[a] * c[b]) / count for a in range(d) for b in range(a, d)}
    return mean, _stack([[upper[min(a, b), max(a, b)] for b in range(d)] for a in range(d)])


def affine(x: Tensor, mean: Tensor, matrix: Tensor, beta: Tensor) -> Tensor:
    """Reads x, writes y = A (x - mu) + beta in its dtype and layout; mean and beta [d, Q], A [Q, d, d]."""
    y = _apply(matrix, _centred(x, mean))
    return numbers_like(x, [(part + _broadcast(shift)).to(x.dtype) for part, shift in zip(y, beta.unbind(0), strict=True)])


def gradient_sums(g: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Reads g and x: s = sum g [d, Q] and G = sum g (x - mu)^T [Q, d, d]."""
    g, centred = g.to(mean.dtype), _centred(x, mean)
    return g.sum(3).sum(0), _stack([[_sum(gradient * part) for part in centred] for gradient in g.unbind(1)])


def gradient(g: Tensor, x: Tensor, mean: Tensor, matrix: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
    """Reads g and x, writes dx = A^T (g - shift) + factor (x - mu), like x; shift [d, Q], the matrices [Q, d, d]."""
    from_g, from_x = _apply(matrix.mT, _centred(g, shift)), _apply(factor, _centred(x, mean))
    return numbers_like(x, [(a + b).to(x.dtype) for a, b in zip(from_g, from_x, strict=True)])


def _broadcast(v: Tensor) -> Tensor:
    """[Q] -> [1, Q, 1]."""
    return v.unsqueeze(0).unsqueeze(-1)


def _centred(x: Tensor, mean: Tensor) -> list[Tensor]:
    """The d components of x - mu, [N, Q, S] each."""
    return [part.to(mean.dtype) - _broadcast(centre) for part, centre in zip(x.unbind(1), mean.unbind(0), strict=True)]


def _apply(matrix: Tensor, parts: list[Tensor]) -> list[Tensor]:
    """The components of every number's matrix [Q, d, d] times the number."""
    result = []
    for row in matrix.unbind(1):
        columns = row.unbind(1)
        y = parts[0] * _broadcast(columns[0])
        for part, column in zip(parts[1:], columns[1:], strict=True):
            y = torch.addcmul(y, part, _broadcast(column))
        result.append(y)
    return result


def _sum(part: Tensor) -> Tensor:
    """Over samples and positions: [N, Q, S] -> [Q]."""
    return part.sum(2).sum(0)


def _stack(rows: list[list[Tensor]]) -> Tensor:
    """d x d vectors [Q] -> [Q, d, d]."""
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


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
