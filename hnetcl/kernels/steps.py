"""Forward and backward of batch norm as plain functions of numbers [N, d, Q, S], for autograd functions to be made of."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hnetcl.kernels.blocks import BLOCKS
from hnetcl.kernels.layout import lay_out, sum_dtype
from hnetcl.kernels.mapping import is_mapped
from hnetcl.kernels.passes import PLAIN, Passes, backward, forward
from hnetcl.kernels.sums import Group, moments_of_all, sums_of_all


@dataclass(frozen=True)
class Options:
    """How to normalize.

    Args:
        d, eps, whitening: see `reference.batch_norm`.
        passes: how to compute; None is the fastest way without a compiler.
        group: the ranks whose batches make up the statistics; None is this one alone.
    """

    d: int
    eps: float
    whitening: str
    passes: Passes | None = None
    group: Group | None = None

    def passes_for(self, *tensors: Tensor) -> Passes:
        """The passes that can work on such tensors."""
        if torch.compiler.is_compiling() or is_mapped(*tensors):
            return PLAIN
        if self.passes is None:
            return BLOCKS if tensors[0].is_cpu else PLAIN
        return self.passes


def forward_batch(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """y like x, mean [d, Q], covariance [Q, d, d], the count of values (0-dim), and the factors of W that backward needs."""
    passes = options.passes_for(x)
    if options.group is None:
        whole = passes.forward or partial(forward, passes=passes)
        y, mean, cov, factors = whole(x, gamma, _beta(beta, x), options.eps, options.whitening)
        return y, mean, cov, mean.new_full((), x.shape[0] * x.shape[3]), factors
    mean, cov = passes.moments(x)
    count, mean, cov = moments_of_all(x.shape[0] * x.shape[3], mean, cov, options.group)
    matrix, factors = passes.forward_matrices(cov, gamma, options.eps, options.whitening, mean.dtype)
    return passes.affine(x, mean, matrix, _beta(beta, x)), mean, cov, count, factors


def backward_batch(
    g: Tensor, x: Tensor, gamma: Tensor | None, mean: Tensor, count: Tensor, factors: list[Tensor], options: Options
) -> tuple[Tensor, Tensor | None, Tensor]:
    """dx, dGamma and dbeta [C]."""
    passes = options.passes_for(g, x)
    if options.group is None:
        whole = passes.backward or partial(backward, passes=passes)
        dx, dgamma, total = whole(g, x, gamma, mean, count, factors, options.whitening)
        return dx, _like(dgamma, gamma), total.reshape(-1)
    total, outer = passes.gradient_sums(g, x, mean)
    _, dgamma, _ = passes.backward_matrices(outer, gamma, factors, options.whitening, mean.dtype)
    dbeta = total.reshape(-1)
    total, outer = sums_of_all(total, outer, options.group)
    matrix, _, dcov = passes.backward_matrices(outer, gamma, factors, options.whitening, mean.dtype)
    return passes.gradient(g, x, mean, matrix, total / count, dcov * (2 / count)), _like(dgamma, gamma), dbeta


def forward_given(
    x: Tensor, mean: Tensor, cov: Tensor, gamma: Tensor | None, beta: Tensor | None, options: Options
) -> tuple[Tensor, list[Tensor]]:
    """y like x, and the factors of W; mean [C], covariance [Q, d, d]."""
    passes = options.passes_for(x, mean, cov)
    centre = mean.reshape(options.d, -1).to(sum_dtype(x.dtype))
    matrix, factors = passes.forward_matrices(cov, gamma, options.eps, options.whitening, centre.dtype)
    return passes.affine(x, centre, matrix, _beta(beta, x)), factors


def backward_given(
    g: Tensor, x: Tensor, mean: Tensor, gamma: Tensor | None, factors: list[Tensor], options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """dx, dmu [C], dV, dGamma and dbeta [C]."""
    passes = options.passes_for(g, x, mean)
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
