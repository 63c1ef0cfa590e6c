"""Batch norm of d-component numbers with its derivative in closed form: saves x and d x d matrices, nothing else.

With g = dL/dy, A = Gamma W and W = f(V):

    s = sum g    G = sum g (x - mu)^T    dbeta = s    dGamma = G W^T    P = Gamma^T G
    S = dL/dV    (see `whitening`)
    batch statistics:  dx = A^T (g - s / M) + (2 / M) S (x - mu)
    given statistics:  dx = A^T g,   dmu = -A^T s,   dV = S

Signatures and results are those of `reference`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hnetcl.kernels import passes
from hnetcl.kernels.layout import sum_dtype
from hnetcl.kernels.whitening import backward_matrices, forward_matrices


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
        mean, cov = passes.moments(numbers)
        matrix, factors = forward_matrices(cov, gamma, eps, whitening, mean.dtype)
        y = passes.affine(numbers, mean, matrix, _beta(beta, mean))
        return y, mean.reshape(-1), cov, *factors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, gamma, _, ctx.d, _, ctx.whitening = inputs
        _, mean, cov, *factors = output
        ctx.mark_non_differentiable(mean, cov, *factors)
        ctx.save_for_backward(x, gamma, mean, *factors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, gamma, mean, *factors = ctx.saved_tensors
        numbers, mean = _split(x, ctx.d), mean.reshape(ctx.d, -1)
        m = x.numel() // x.shape[1]
        total, outer = passes.gradient_sums(g, numbers, mean)
        matrix, dgamma, dcov = backward_matrices(outer, gamma, factors, ctx.whitening, mean.dtype)
        dx = passes.gradient(g, numbers, mean, matrix, total / m, dcov * (2 / m))
        return dx.reshape(x.shape), _like(dgamma, gamma), _needed(total, ctx, 2), None, None, None


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
        centre = mean.reshape(d, -1).to(sum_dtype(x.dtype))
        matrix, factors = forward_matrices(cov, gamma, eps, whitening, centre.dtype)
        y = passes.affine(_split(x, d), centre, matrix, _beta(beta, centre))
        return y, *factors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, mean, cov, gamma, _, ctx.d, _, ctx.whitening = inputs
        _, *factors = output
        ctx.mark_non_differentiable(*factors)
        ctx.save_for_backward(x, mean, cov, gamma, *factors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, mean, cov, gamma, *factors = ctx.saved_tensors
        numbers, centre = _split(x, ctx.d), mean.reshape(ctx.d, -1).to(sum_dtype(x.dtype))
        total, outer = passes.gradient_sums(g, numbers, centre)
        matrix, dgamma, dcov = backward_matrices(outer, gamma, factors, ctx.whitening, centre.dtype)
        zero = torch.zeros_like(centre)
        dx = passes.affine(g, zero, matrix.mT, zero)
        dmean = -(matrix.mT @ total.T.unsqueeze(-1)).squeeze(-1).T.reshape(-1).to(mean.dtype)
        return dx.reshape(x.shape), dmean, dcov.to(cov.dtype), _like(dgamma, gamma), _needed(total, ctx, 4), None, None, None


def _split(x: Tensor, d: int) -> Tensor:
    """[N, C, *S] -> [N, d, Q, prod(S)]."""
    return x.reshape(x.shape[0], d, x.shape[1] // d, x.shape[2:].numel())


def _beta(beta: Tensor | None, mean: Tensor) -> Tensor:
    """[d, Q]."""
    return torch.zeros_like(mean) if beta is None else beta.to(mean.dtype).reshape(mean.shape)


def _needed(total: Tensor, ctx: Any, position: int) -> Tensor | None:
    """s as dbeta, where there is a beta."""
    return total.reshape(-1) if ctx.needs_input_grad[position] else None


def _like(grad: Tensor, value: Tensor | None) -> Tensor | None:
    return None if value is None else grad.to(value.dtype)
