"""Batch norm of d-component numbers with its derivative in closed form: saves x and d x d matrices, nothing else.

With g = dL/dy, A = Gamma W and W = f(V):

    s = sum g    G = sum g (x - mu)^T    dbeta = s    dGamma = G W^T    P = Gamma^T G
    S = dL/dV    (see `whitening`)
    batch statistics:  dx = A^T (g - s / M) + (2 / M) S (x - mu)
    given statistics:  dx = A^T g,   dmu = -A^T s,   dV = S

Signatures and results are those of `reference`.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hnetcl.kernels import steps
from hnetcl.kernels.layout import owned, split, sum_dtype
from hnetcl.kernels.mapping import (
    is_mapped,
    learns,
    merge_matrices,
    merge_numbers,
    merge_vectors,
    one_by_one,
    part_matrices,
    part_numbers,
    part_vectors,
)
from hnetcl.kernels.once import only_once
from hnetcl.kernels.passes import Passes
from hnetcl.kernels.steps import Options
from hnetcl.kernels.sums import Group

TWICE = 'the closed form of batch norm has no second derivative: use backend="reference"'


def batch_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    d: int,
    eps: float,
    whitening: str,
    passes: Passes | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalizes by the batch's own statistics; see `reference.batch_norm`. Mean and covariance carry no graph.

    Args:
        passes: how to compute; None is the fastest way without a compiler.
    """
    if d == 1 and not is_mapped(x, gamma, beta):
        return _real_batch_norm(x, gamma, beta, eps)
    y, mean, cov, *_ = _BatchStatistics.apply(x, gamma, beta, Options(d, eps, whitening, passes))
    return y.reshape(x.shape), mean, cov


def synchronised_batch_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    d: int,
    eps: float,
    whitening: str,
    group: Group,
    passes: Passes | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`batch_norm` by the statistics of all ranks' batches together.

    Gradients of gamma and beta are this rank's share, for their average is taken elsewhere.

    Returns:
        y, mean, covariance, and how many values per channel there were on all ranks (0-dim).
    """
    y, mean, cov, count, *_ = _BatchStatistics.apply(x, gamma, beta, Options(d, eps, whitening, passes, group))
    return y.reshape(x.shape), mean, cov, count


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
    passes: Passes | None = None,
) -> Tensor:
    """Normalizes by given statistics, which gradients reach; see `reference.normalize`."""
    if d == 1 and not (learns(mean) or learns(cov)):
        if is_mapped(mean, cov):
            return _mapped_normalize(x, mean, cov, gamma, beta, eps)
        return _torch_batch_norm(x, mean, cov.reshape(-1), gamma, beta, eps, training=False)
    y: Tensor = _GivenStatistics.apply(x, mean, cov, gamma, beta, Options(d, eps, whitening, passes))[0]
    return y.reshape(x.shape)


def _real_batch_norm(x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """torch's own kernel; momentum 1 makes it hand out the batch's statistics."""
    c, m = x.shape[1], x.numel() // x.shape[1]
    mean, var = torch.zeros(2, c, dtype=sum_dtype(x.dtype), device=x.device)
    y = _torch_batch_norm(x, mean, var, gamma, beta, eps, training=True)
    return y, mean, (var * ((m - 1) / m)).reshape(c, 1, 1)


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
    vectors = mean, var, None if gamma is None else gamma.reshape(-1), beta
    dense = [
        None if v is None else v.to(dtype).contiguous() for v in vectors
    ]  # torch's backward takes them to be, and reads past an expanded one
    return F.batch_norm(x, dense[0], dense[1], dense[2], dense[3], training, 1.0, eps)


# The functions return numbers [N, d, Q, S], shaped like x only outside of them: what is a view inside a function can't be
# changed in place after it, as ReLU(inplace=True) does. Under vmap the batch axis becomes more numbers.


class _BatchStatistics(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, gamma: Tensor | None, beta: Tensor | None, options: Options) -> tuple[Tensor, ...]:
        y, mean, cov, count, factors = steps.forward_batch(split(x, options.d), gamma, beta, options)
        return owned(y), mean.reshape(-1), cov, count, *factors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, gamma, _, ctx.options = inputs
        _, mean, cov, count, *factors = output
        ctx.mark_non_differentiable(mean, cov, count, *factors)
        ctx.save_for_backward(x, gamma, mean, count, *factors)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return one_by_one(partial(_BatchStatistics._backward, ctx), g)

    @staticmethod
    def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, mean, count, *factors = saved = ctx.saved_tensors
        options: Options = ctx.options
        with torch.no_grad():
            numbers, mean = split(x, options.d), mean.reshape(options.d, -1)
            dx, dgamma, dbeta = steps.backward_batch(g, numbers, gamma, mean, count, factors, options)
        gradients = dx.reshape(x.shape), dgamma, dbeta if ctx.needs_input_grad[2] else None
        return *only_once(gradients, (g, *saved), TWICE), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, gamma: Any, beta: Any, options: Options) -> Any:
        size, d = info.batch_size, options.d
        merged = merge_numbers(x, in_dims[0], size, d), merge_matrices(gamma, in_dims[1], size)
        y, mean, cov, count, *factors = _BatchStatistics.apply(*merged, merge_vectors(beta, in_dims[2], size, d), options)
        parts = [part_matrices(each, size) for each in (cov, *factors)]
        outputs = part_numbers(y, size), part_vectors(mean, size, d), parts[0], count, *parts[1:]
        return outputs, (2, 0, 0, None, *[0] * len(factors))


class _GivenStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, mean: Tensor, cov: Tensor, gamma: Tensor | None, beta: Tensor | None, options: Options
    ) -> tuple[Tensor, ...]:
        y, factors = steps.forward_given(split(x, options.d), mean, cov, gamma, beta, options)
        return owned(y), *factors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, mean, cov, gamma, _, ctx.options = inputs
        _, *factors = output
        ctx.mark_non_differentiable(*factors)
        ctx.save_for_backward(x, mean, cov, gamma, *factors)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return one_by_one(partial(_GivenStatistics._backward, ctx), g)

    @staticmethod
    def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, cov, gamma, *factors = saved = ctx.saved_tensors
        with torch.no_grad():
            numbers = split(x, ctx.options.d)
            dx, dmean, dcov, dgamma, dbeta = steps.backward_given(g, numbers, mean, gamma, factors, ctx.options)
        gradients = dx.reshape(x.shape), dmean, dcov.to(cov.dtype), dgamma, dbeta if ctx.needs_input_grad[4] else None
        return *only_once(gradients, (g, *saved), TWICE), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], x: Tensor, mean: Any, cov: Any, gamma: Any, beta: Any, options: Options
    ) -> Any:
        size, d = info.batch_size, options.d
        y, *factors = _GivenStatistics.apply(
            merge_numbers(x, in_dims[0], size, d),
            merge_vectors(mean, in_dims[1], size, d),
            merge_matrices(cov, in_dims[2], size),
            merge_matrices(gamma, in_dims[3], size),
            merge_vectors(beta, in_dims[4], size, d),
            options,
        )
        parts = [part_matrices(each, size) for each in factors]
        return (part_numbers(y, size), *parts), (2, *[0] * len(parts))
