"""Statistics as normal distributions: as values that may be learned, and how far two of them lie apart.

A mean [..., C] (component-major) and a covariance [..., Q, d, d] are written as

    V = L L^T,    mu = L m,    L = diag(exp(s)) U,    U lower triangular with ones on its diagonal

with the *location* m [..., C] and the *factor* [..., Q, d (d + 1) / 2] ([..., C] for d = 1): s and the lower part of U, column
by column. Whatever these numbers are, V is positive definite; zeros stand for mean 0 and covariance I; and all but s are free
of the scale of the values, which batch norm leaves to drift as the weights before it grow.

Nothing is computed in half precision, whatever the numbers come in and under autocast too.
"""

import torch
from torch import Tensor

from hnetcl.kernels.layout import sum_dtype
from hnetcl.kernels.whitening import whiten


def statistics(location: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [..., C] and covariance [..., Q, d, d]."""
    location, factor = _wide(location), _wide(factor)
    low = _lower(factor, _dim(location, factor))
    return _from_columns(_product(low, _to_columns(location, low.shape[-1]))), _product(low, low.mT)


def parameters(mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `statistics`: location and factor; of a singular covariance, those of one nearby. Never a host sync."""
    d = cov.shape[-1]
    mean, cov = _wide(mean), _wide(cov)
    inverse = whiten(cov, "cholesky").w.to(cov.dtype)
    low = _product(cov, inverse.mT)
    diagonal = (low * torch.eye(d, dtype=low.dtype, device=low.device)).sum(-1, keepdim=True).clamp_min(1e-30)
    row, column = _places(d, cov.device)
    factor = torch.where(row == column, diagonal.log().expand_as(low)[..., row, column], (low / diagonal)[..., row, column])
    return _from_columns(_product(inverse, _to_columns(mean, d))), factor.squeeze(-1) if d == 1 else factor


def of_channels(mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Location and factor of torch's running statistics, a mean [C] and a variance [C], which is 0 of a dead channel."""
    return parameters(mean, (var + 1e-6 * eps).reshape(-1, 1, 1))


def divergence(mean: Tensor, cov: Tensor, location: Tensor, factor: Tensor) -> Tensor:
    """Kullback-Leibler divergence of what location and factor stand for from N(mean, cov), averaged over numbers, but for a
    term that does not depend on them: the loss by which they learn. 0-dim; cov [Q, d, d] may be singular.
    """
    d = cov.shape[-1]
    location, factor = _wide(location), _wide(factor)
    mean, cov = mean.to(factor.dtype), cov.to(factor.dtype)
    low = _lower(factor, d)
    half = torch.linalg.solve_triangular(low, cov, upper=False)
    spread = torch.linalg.solve_triangular(low, half.mT, upper=False)
    apart = torch.linalg.solve_triangular(low, _to_columns(mean, d), upper=False) - _to_columns(location, d)
    eye = torch.eye(d, dtype=cov.dtype, device=cov.device)
    inner = ((spread * eye).sum((-2, -1)) + apart.square().sum((-2, -1))) / 2
    loss: Tensor = (inner + _log_diagonal(factor, d).sum(-1)).mean()
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
    apart = _to_columns(mean.double() - other_mean.double(), d)
    (a_inverse, _), (b_inverse, _) = torch.linalg.inv_ex(a), torch.linalg.inv_ex(b)  # of a singular matrix nothing finite
    traces = (a_inverse @ b + b_inverse @ a - 2 * eye).diagonal(dim1=-2, dim2=-1).sum(-1)
    shift = (apart.mT @ (a_inverse + b_inverse) @ apart).squeeze((-1, -2))
    apart_by: Tensor = ((traces + shift) / (4 * d)).mean(-1)
    return apart_by


def _wide(t: Tensor) -> Tensor:
    return t.to(sum_dtype(t.dtype))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Of matrices; autocast would take `a @ b` in half precision."""
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def _dim(location: Tensor, factor: Tensor) -> int:
    return 1 if location.ndim == factor.ndim else location.shape[-1] // factor.shape[-2]


def _to_columns(v: Tensor, d: int) -> Tensor:
    """[..., C] -> [..., Q, d, 1]."""
    columns: Tensor = v.unflatten(-1, (d, -1)).mT.unsqueeze(-1)
    return columns


def _from_columns(columns: Tensor) -> Tensor:
    """[..., Q, d, 1] -> [..., C]."""
    return columns.squeeze(-1).mT.flatten(-2)


def _places(d: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns in L of a factor's numbers."""
    column, row = torch.triu_indices(d, d, device=device)
    return row, column


def _square(factor: Tensor, d: int) -> Tensor:
    """[..., Q, d, d] with the factor's numbers in their places; what stands above the diagonal has no meaning."""
    row, column = _places(d, factor.device)
    place = torch.zeros(d, d, dtype=torch.long, device=factor.device)
    place[row, column] = torch.arange(len(row), device=factor.device)
    square: Tensor = (factor.unsqueeze(-1) if d == 1 else factor)[..., place]
    return square


def _log_diagonal(factor: Tensor, d: int) -> Tensor:
    """s, [..., Q, d]."""
    return (_square(factor, d) * torch.eye(d, dtype=factor.dtype, device=factor.device)).sum(-1)


def _lower(factor: Tensor, d: int) -> Tensor:
    """L, [..., Q, d, d]."""
    unit = _square(factor, d).tril(-1) + torch.eye(d, dtype=factor.dtype, device=factor.device)
    return _log_diagonal(factor, d).exp().unsqueeze(-1) * unit
