"""Rows that are parameters, which a loss teaches."""

import torch
from torch import Tensor

from hnetcl.bn.gaussian import divergence, of_channels, parameters, statistics
from hnetcl.bn.statistics.base import Layer, Row, StatisticsMode, read_one


class LearnableStatistics(StatisticsMode):
    r"""Training normalizes by the batch, and an auxiliary loss pulls the task's row towards the batch; evaluation uses the row.

    .. math:: KL(N(\mu, V) \,\|\, N(\mu_r, V_r))

    Rows: `running_location` [C], `running_factor` [C] (d = 1) or [Q, d (d + 1) / 2], both parameters, and
    `num_batches_tracked` []. Whatever values they take, the covariance that they stand for is positive definite (see
    `gaussian`). A fresh row becomes the statistics of its first batch, for to get there by gradient descent takes long.
    """

    name = "learnable"
    row_names = ("running_location", "running_factor", "num_batches_tracked")
    learns_rows = True
    has_auxiliary_loss = True

    def row(self, layer: Layer, mean: Tensor, cov: Tensor, count: Tensor) -> Row:
        return *parameters(mean, cov + layer.eps * _eye(cov)), count

    def decode(self, row: list[Tensor]) -> tuple[Tensor, Tensor]:
        location, factor, _ = row
        return statistics(location, factor)

    def fresh_row(self, layer: Layer, mean: Tensor, var: Tensor, count: Tensor) -> Row:
        return mean, mean.new_zeros(*mean.shape[:-1], *layer.triangle), count

    def given_row(self, layer: Layer, mean: Tensor, var: Tensor, count: Tensor) -> Row:
        told = bool((mean != 0).any() or (var != 1).any())
        return *of_channels(mean, var, layer.eps), count.clamp_min(
            int(told)
        )  # a row that has seen nothing starts at its first batch

    def update(self, layer: Layer, stats_id: int | Tensor | None, mean: Tensor, cov: Tensor) -> None:
        location, factor, count = read_one(layer, stats_id)
        first = count == 0
        start = self.row(layer, mean, cov, count)
        moved = [torch.where(first, new.to(old.dtype), old) for new, old in zip(start, (location, factor), strict=False)]
        layer.write(stats_id, *moved, count + 1)

    def evaluation(self, layer: Layer, stats_id: int | Tensor | None) -> tuple[Tensor, Tensor] | None:
        return layer.row_statistics(stats_id)

    def auxiliary_loss(self, layer: Layer, stats_id: int | Tensor | None, mean: Tensor, cov: Tensor) -> Tensor:
        location, factor, _ = layer.read(stats_id)
        return divergence(mean, cov, location, factor)


def _eye(cov: Tensor) -> Tensor:
    return torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
