"""Statistics as normal distributions: numbers that learn freely and yield a covariance, and how far two of them lie apart.

Shapes have any leading axes [...]; a covariance is [..., Q, d, d], a mean [..., C] component-major.
"""

import torch
from torch import Tensor


def covariance(factor: Tensor, d: int) -> Tensor:
    """L L^T, positive definite whatever the factor is.

    Args:
        factor: [..., Q, d (d + 1) / 2], or [..., C] for d = 1: the lower triangle of L column by column, its diagonal as
            logarithms; zeros stand for I.
    """
    low = _lower(factor.unsqueeze(-1) if d == 1 else factor, d)
    return low @ low.mT


def factor(cov: Tensor) -> Tensor:
    """The inverse of `covariance`.

    Raises:
        torch.linalg.LinAlgError: a covariance is not positive definite.
    """
    d = cov.shape[-1]
    low = torch.linalg.cholesky(cov)
    low = low.tril(-1) + torch.diag_embed(low.diagonal(dim1=-2, dim2=-1).log())
    column, row = torch.triu_indices(d, d)
    value: Tensor = low[..., row, column]
    return value.squeeze(-1) if d == 1 else value


def divergence(mean: Tensor, cov: Tensor, factor: Tensor, centre: Tensor) -> Tensor:
    """Kullback-Leibler divergence of N(centre, L L^T) from N(mean, cov), the average over numbers, up to what does not
    depend on centre and factor: the loss by which these learn to be mean and cov.

    Args:
        mean, cov: of what is learned, [C] and [Q, d, d]; cov may be singular.
        factor, centre: of what learns, as in `covariance`, and [C].
    """
    d = cov.shape[-1]
    low = _lower(factor.unsqueeze(-1) if d == 1 else factor, d)
    apart = (mean - centre).reshape(d, -1).T.unsqueeze(-1)
    half = torch.linalg.solve_triangular(low, cov + apart @ apart.mT, upper=False)
    inner = torch.linalg.solve_triangular(low, half.mT, upper=False)
    trace = inner.diagonal(dim1=-2, dim2=-1).sum(-1)
    loss: Tensor = (trace / 2 + low.diagonal(dim1=-2, dim2=-1).log().sum(-1)).mean()
    return loss


def distance(mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor, eps: float) -> Tensor:
    """Symmetrised Kullback-Leibler divergence (J / 2) per component, in nats, averaged over numbers, in float64: 0 where the
    two are equal, 1/2 where the means lie one standard deviation apart. [...], of broadcastable leading axes.

    Args:
        eps: added to both covariances' diagonals, as where they are used.
    """
    d = cov.shape[-1]
    eye = torch.eye(d, dtype=torch.float64, device=cov.device)
    a, b = cov.double() + eps * eye, other_cov.double() + eps * eye
    apart = (mean.double() - other_mean.double()).unflatten(-1, (d, -1)).mT.unsqueeze(-1)
    a_inverse, b_inverse = torch.linalg.inv(a), torch.linalg.inv(b)
    traces = (a_inverse @ b + b_inverse @ a - 2 * eye).diagonal(dim1=-2, dim2=-1).sum(-1)
    shift = (apart.mT @ (a_inverse + b_inverse) @ apart).squeeze((-1, -2))
    apart_by: Tensor = ((traces + shift) / (4 * d)).mean(-1)
    return apart_by


def _lower(factor: Tensor, d: int) -> Tensor:
    column, row = torch.triu_indices(d, d, device=factor.device)
    place = torch.zeros(d, d, dtype=torch.long, device=factor.device)
    place[row, column] = torch.arange(len(row), device=factor.device)
    square, eye = factor[..., place], torch.eye(d, dtype=factor.dtype, device=factor.device)
    return square.tril(-1) + (square * eye).exp() * eye
