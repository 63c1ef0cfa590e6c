"""Gaussians with a mean for each class and one covariance for all of them: what is kept of a task's features."""

import math

import torch
from torch import Tensor


class ClassMoments:
    """Means of K classes [K, D] and the covariance within classes [D, D] of all features seen, in float64, in one pass.

    Sums are taken about the mean of the first batch: about zero they would cancel.

    Args:
        classes: K; a class without features takes the mean of all.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.origin = self.counts = self.sums = self.squares = torch.zeros(())

    def add(self, x: Tensor, y: Tensor) -> None:
        """Takes in features [N, D] and their classes [N]."""
        x = x.double()
        if not self.origin.ndim:
            self.origin = x.mean(0)
            self.counts, self.sums = x.new_zeros(self.classes), x.new_zeros(self.classes, x.shape[1])
            self.squares = x.new_zeros(x.shape[1], x.shape[1])
        x = x - self.origin
        self.counts += torch.bincount(y, minlength=self.classes)
        self.sums.index_add_(0, y, x)
        self.squares += x.T @ x

    def means(self) -> Tensor:
        """[K, D]."""
        own = self.sums / self.counts.clamp(min=1)[:, None]
        overall = self.sums.sum(0) / self.counts.sum()
        return self.origin + torch.where(self.counts[:, None] > 0, own, overall)

    def covariance(self) -> Tensor:
        """[D, D], positive semidefinite up to rounding."""
        apart = self.sums / self.counts.clamp(min=1).sqrt()[:, None]
        return (self.squares - apart.T @ apart) / self.counts.sum()


def loaded(covariance: Tensor, ridge: float) -> Tensor:
    """The covariance [D, D] with `ridge` times its mean variance added to every variance: no direction is without any."""
    variance = covariance.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    return covariance + ridge * variance * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)


def packed(covariance: Tensor) -> Tensor:
    """The lower triangle [D (D + 1) / 2] of a symmetric matrix [D, D]."""
    rows, columns = torch.tril_indices(*covariance.shape, device=covariance.device)
    return covariance[rows, columns]


def unpacked(triangle: Tensor) -> Tensor:
    """The inverse of `packed`."""
    size = (math.isqrt(8 * len(triangle) + 1) - 1) // 2
    rows, columns = torch.tril_indices(size, size, device=triangle.device)
    matrix = triangle.new_zeros(size, size)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return matrix


def leading(covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The `rank` leading directions of a covariance [D, D], and the mean variance of all others.

    Returns:
        Directions [rank, D], each as long as the standard deviation in it; and the residual variance, 0-dim. Together they are
        the covariance V^T V, with the residual variance added in all directions that V has not.

    Source: Tipping & Bishop 1999, Mixtures of probabilistic principal component analyzers, section 2.2.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=torch.finfo(torch.float32).tiny)
    directions = vectors[:, -rank:].T * values[-rank:].sqrt()[:, None]
    return directions, values[:-rank].mean() if rank < len(values) else values[0]


def whitening(covariance: Tensor, ridge: float = 0.0) -> Tensor:
    """W [D, D], for which the squared length of W (x - m) is the squared Mahalanobis distance of x from m.

    Args:
        covariance: [D, D], with `ridge` times its mean variance in it already, see `loaded`. Where the rounding of what is kept
            took variances below that, they are put back to it.
    """
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        values, vectors = torch.linalg.eigh(covariance)
        least = ridge / (1 + ridge) * covariance.diagonal().mean()
        widths = values.clamp(min=least.clamp(min=torch.finfo(torch.float32).tiny)).rsqrt()
        whiten: Tensor = (vectors * widths).T
        return whiten
    identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    inverse: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
    return inverse


def whitening_of_leading(directions: Tensor, residual: Tensor) -> Tensor:
    """The same of what `leading` gives: symmetric."""
    lengths = directions.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    units = directions / lengths
    identity = torch.eye(directions.shape[1], dtype=directions.dtype, device=directions.device)
    whiten: Tensor = identity / residual.sqrt() + units.T @ (units * (1 / lengths - 1 / residual.sqrt()))
    return whiten


def squared_distances(x: Tensor, means: Tensor, whiten: Tensor) -> Tensor:
    """The squared Mahalanobis distance of each feature [N, D] from the nearest of K means [K, D]: [N].

    Args:
        whiten: W [D, D].

    Source: Lee et al. 2018 (arXiv:1807.03888), equation 2.
    """
    centre = means.mean(0)  # features far from zero would lose digits
    z, centres = (x - centre) @ whiten.T, (means - centre) @ whiten.T
    return torch.stack([(z - each).square().sum(1) for each in centres]).amin(0)
