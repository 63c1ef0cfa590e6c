"""Batch norm of d-component numbers with its derivative in closed form: saves x and d x d matrices, nothing else.

With g = dL/dy, A = Gamma W and W = f(V):

    s = sum g    G = sum g (x - mu)^T    dbeta = s    dGamma = G W^T    P = Gamma^T G
    S = dL/dV    (see `whitening`)
    batch statistics:  dx = A^T (g - s / M) + (2 / M) S (x - mu)
    given statistics:  dx = A^T g,   dmu = -A^T s,   dV = S

Signatures and results are those of `reference`. Real numbers, d = 1, go to torch's own kernel wherever it can do the work.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hnetcl.kernels.all_reduce import Group, gradient_sums_of_all, moments_of_all
from hnetcl.kernels.autograd import is_mapped, learns, only_once, owned
from hnetcl.kernels.layout import lay_out, merge_channels, merge_matrices, merge_vectors, sum_dtype, to_numbers
from hnetcl.kernels.passes import BLOCKS, Passes, backward, forward, usable
from hnetcl.kernels.reference import Normalized
from hnetcl.kernels.whitening import Factors

TWICE = 'the closed form of batch norm has no second derivative: use backend="reference"'


@dataclass(frozen=True)
class Options:
    """How to normalize.

    Args:
        d, eps, whitening: see `reference.batch_norm`.
        passes: how to compute, where that is possible; see `passes.usable`.
        group: the ranks whose batches make up the statistics; None is this one alone.
    """

    d: int
    eps: float
    whitening: str
    passes: Passes
    group: Group | None = None


def batch_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    d: int,
    eps: float,
    whitening: str,
    group: Group | None = None,
    passes: Passes = BLOCKS,
) -> Normalized:
    """Normalizes by the batch's own statistics; see `reference.batch_norm`. Mean and covariance carry no graph.

    Args:
        group: the ranks of torch.distributed whose batches make up the statistics. Gradients of gamma and beta are this
            rank's share then, for their average is taken elsewhere.
        passes: how to compute.

    Raises:
        RuntimeError: a second derivative is taken.
    """
    if d == 1 and group is None and not is_mapped(x, gamma, beta):
        return _real_batch_norm(x, gamma, beta, eps)
    y, mean, cov, count, *_ = _BatchStatistics.apply(x, gamma, beta, Options(d, eps, whitening, passes, group))
    return Normalized(y.reshape(x.shape), mean, cov, x.numel() // x.shape[1] if group is None else count)


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
    passes: Passes = BLOCKS,
) -> Tensor:
    """Normalizes by given statistics, which gradients reach; see `reference.normalize` and `batch_norm`."""
    if d == 1 and not (learns(mean) or learns(cov)):
        if is_mapped(mean, cov):
            return _mapped_normalize(x, mean, cov, gamma, beta, eps)
        return _torch_batch_norm(x, mean, cov.reshape(-1), gamma, beta, eps, training=False)
    y: Tensor = _GivenStatistics.apply(x, mean, cov, gamma, beta, Options(d, eps, whitening, passes))[0]
    return y.reshape(x.shape)


def _real_batch_norm(x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> Normalized:
    """torch's own kernel; momentum 1 makes it hand out the batch's statistics."""
    c, m = x.shape[1], x.numel() // x.shape[1]
    mean, var = torch.zeros(2, c, dtype=sum_dtype(x.dtype), device=x.device)
    y = _torch_batch_norm(x, mean, var, gamma, beta, eps, training=True)
    return Normalized(y, mean, (var * ((m - 1) / m)).reshape(c, 1, 1), m)


def _mapped_normalize(x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> Tensor:
    """What torch's kernel computes, which takes no statistics that vmap maps over."""
    dtype = sum_dtype(x.dtype)
    scale = (var.to(dtype).reshape(-1) + eps).rsqrt()
    if gamma is not None:
        scale = scale * gamma.reshape(-1)
    shift = -mean * scale if beta is None else torch.addcmul(beta.to(dtype), -mean.to(dtype), scale)
    scale, shift = (v.reshape(-1, *[1] * (x.ndim - 2)) for v in (scale, shift))
    return torch.addcmul(shift, x.to(dtype), scale).to(x.dtype)


def _torch_batch_norm(
    x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, training: bool
) -> Tensor:
    dtype = sum_dtype(x.dtype)
    given = mean, var, None if gamma is None else gamma.reshape(-1), beta
    # torch's backward takes them to be contiguous, and reads past an expanded one
    mean_of, var_of, weight, bias = (None if v is None else v.to(dtype).contiguous() for v in given)
    return F.batch_norm(x, mean_of, var_of, weight, bias, training, 1.0, eps)


# Forward and backward as plain functions of numbers x [N, d, Q, S], of which the autograd functions here and in `conv_bn` are
# made.


def forward_batch(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor, Factors]:
    """y like x, mean [d, Q], covariance [Q, d, d], the values per channel on all ranks (0-dim), and the factors of W."""
    passes, count = usable(options.passes, x, gamma, beta), x.shape[0] * x.shape[3]
    if options.group is None:
        whole = passes.forward or partial(forward, passes=passes)
        y, mean, cov, factors = whole(x, gamma, _beta(beta, x), options.eps, options.whitening)
        return y, mean, cov, mean.new_full((), count), factors
    mean, cov = passes.moments(x)
    total, mean, cov = moments_of_all(count, mean, cov, options.group)
    matrix, factors = passes.forward_matrices(cov, gamma, options.eps, options.whitening, mean.dtype)
    return passes.affine(x, mean, matrix, _beta(beta, x)), mean, cov, total, factors


def backward_batch(
    g: Tensor, x: Tensor, gamma: Tensor | None, mean: Tensor, count: Tensor, factors: Factors, options: Options
) -> tuple[Tensor, Tensor | None, Tensor]:
    """dx like x, dGamma [Q, d, d] and dbeta [C]; g like x, mean and count as `forward_batch` found them."""
    passes = usable(options.passes, g, x, gamma, mean)
    if options.group is None:
        whole = passes.backward or partial(backward, passes=passes)
        dx, dgamma, total = whole(g, x, gamma, mean, count, factors, options.whitening)
        return dx, _like(dgamma, gamma), total.reshape(-1)
    total, outer = passes.gradient_sums(g, x, mean)
    _, dgamma, _ = passes.backward_matrices(outer, gamma, factors, options.whitening, mean.dtype)
    dbeta = total.reshape(-1)
    total, outer = gradient_sums_of_all(total, outer, options.group)
    matrix, _, dcov = passes.backward_matrices(outer, gamma, factors, options.whitening, mean.dtype)
    return passes.gradient(g, x, mean, matrix, total / count, dcov * (2 / count)), _like(dgamma, gamma), dbeta


def forward_given(
    x: Tensor, mean: Tensor, cov: Tensor, gamma: Tensor | None, beta: Tensor | None, options: Options
) -> tuple[Tensor, Factors]:
    """y like x, and the factors of W; mean [C], covariance [Q, d, d]."""
    passes = usable(options.passes, x, mean, cov, gamma, beta)
    centre = mean.reshape(options.d, -1).to(sum_dtype(x.dtype))
    matrix, factors = passes.forward_matrices(cov, gamma, options.eps, options.whitening, centre.dtype)
    return passes.affine(x, centre, matrix, _beta(beta, x)), factors


def backward_given(
    g: Tensor, x: Tensor, mean: Tensor, gamma: Tensor | None, factors: Factors, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """dx, dmu [C], dV, dGamma and dbeta [C]."""
    passes = usable(options.passes, g, x, mean, gamma, factors.w)
    centre = mean.reshape(options.d, -1).to(sum_dtype(x.dtype))
    total, outer = passes.gradient_sums(g, x, centre)
    matrix, dgamma, dcov = passes.backward_matrices(outer, gamma, factors, options.whitening, centre.dtype)
    zero = torch.zeros_like(centre)
    dx = passes.affine(lay_out(g.to(x.dtype), x), zero, matrix.mT, zero)
    dmean = -(matrix * total.T.unsqueeze(-1)).sum(1).T.reshape(-1).to(mean.dtype)
    return dx, dmean, dcov, _like(dgamma, gamma), total.reshape(-1)


def _beta(beta: Tensor | None, x: Tensor) -> Tensor:
    """[d, Q]."""
    shape, dtype = x.shape[1:3], sum_dtype(x.dtype)
    return torch.zeros(shape, dtype=dtype, device=x.device) if beta is None else beta.to(dtype).reshape(shape)


def _like(grad: Tensor, value: Tensor | None) -> Tensor | None:
    return None if value is None else grad.to(value.dtype)


# The autograd functions return numbers [N, d, Q, S], shaped like x only outside of them: what is a view inside a function can't
# be changed in place after it, as ReLU(inplace=True) does. Under vmap the batch axis becomes more numbers.


class _BatchStatistics(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, gamma: Tensor | None, beta: Tensor | None, options: Options) -> tuple[Tensor, ...]:
        y, mean, cov, count, factors = forward_batch(to_numbers(x, options.d), gamma, beta, options)
        return owned(y), mean.reshape(-1), cov, count, *factors.tensors()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, gamma, _, ctx.options = inputs
        _, mean, cov, count, *factors = output
        ctx.mark_non_differentiable(mean, cov, count, *factors)
        ctx.save_for_backward(x, gamma, mean, count, *factors)

    @staticmethod
    @only_once(TWICE)
    def backward(
        ctx: Any, g: Tensor, x: Tensor, gamma: Tensor | None, mean: Tensor, count: Tensor, *factors: Tensor
    ) -> tuple[Tensor | None, ...]:
        options, (_, _, needs_beta, _) = ctx.options, ctx.needs_input_grad
        numbers, mean = to_numbers(x, options.d), mean.reshape(options.d, -1)
        dx, dgamma, dbeta = backward_batch(g, numbers, gamma, mean, count, Factors(*factors), options)
        return dx.reshape(x.shape), dgamma, dbeta if needs_beta else None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, gamma: Any, beta: Any, options: Options) -> Any:
        (x_dim, gamma_dim, beta_dim, _), size, d = in_dims, info.batch_size, options.d
        y, mean, cov, count, *factors = _BatchStatistics.apply(
            merge_channels(x, x_dim, size, d),
            merge_matrices(gamma, gamma_dim, size),
            merge_vectors(beta, beta_dim, size, d),
            options,
        )
        y, mean = y.unflatten(2, (size, -1)), mean.reshape(d, size, -1).movedim(1, 0).reshape(size, -1)
        cov, *factors = (each.unflatten(0, (size, -1)) for each in (cov, *factors))
        return (y, mean, cov, count, *factors), (2, 0, 0, None, *[0] * len(factors))


class _GivenStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, mean: Tensor, cov: Tensor, gamma: Tensor | None, beta: Tensor | None, options: Options
    ) -> tuple[Tensor, ...]:
        y, factors = forward_given(to_numbers(x, options.d), mean, cov, gamma, beta, options)
        return owned(y), *factors.tensors()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, mean, cov, gamma, _, ctx.options = inputs
        _, *factors = output
        ctx.mark_non_differentiable(*factors)
        ctx.save_for_backward(x, mean, cov, gamma, *factors)

    @staticmethod
    @only_once(TWICE)
    def backward(
        ctx: Any, g: Tensor, x: Tensor, mean: Tensor, cov: Tensor, gamma: Tensor | None, *factors: Tensor
    ) -> tuple[Tensor | None, ...]:
        options, (_, _, _, _, needs_beta, _) = ctx.options, ctx.needs_input_grad
        numbers = to_numbers(x, options.d)
        dx, dmean, dcov, dgamma, dbeta = backward_given(g, numbers, mean, gamma, Factors(*factors), options)
        return dx.reshape(x.shape), dmean, dcov.to(cov.dtype), dgamma, dbeta if needs_beta else None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], x: Tensor, mean: Any, cov: Any, gamma: Any, beta: Any, options: Options
    ) -> Any:
        (x_dim, mean_dim, cov_dim, gamma_dim, beta_dim, _), size, d = in_dims, info.batch_size, options.d
        y, *factors = _GivenStatistics.apply(
            merge_channels(x, x_dim, size, d),
            merge_vectors(mean, mean_dim, size, d),
            merge_matrices(cov, cov_dim, size),
            merge_matrices(gamma, gamma_dim, size),
            merge_vectors(beta, beta_dim, size, d),
            options,
        )
        factors = [each.unflatten(0, (size, -1)) for each in factors]
        return (y.unflatten(2, (size, -1)), *factors), (2, *[0] * len(factors))
