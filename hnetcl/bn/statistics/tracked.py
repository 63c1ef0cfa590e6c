"""Running averages per task, as batch norm has had them since Ioffe & Szegedy 2015."""

import torch
from torch import Tensor

from hnetcl.bn.statistics.base import Layer, Row, StatisticsMode, read_one
from hnetcl.kernels.layout import sum_dtype


class TrackedStatistics(StatisticsMode):
    r"""Training normalizes by the batch, and the task's row follows; evaluation uses the row.

    .. math:: \mu_r \leftarrow (1 - a) \mu_r + a \mu, \qquad V_r \leftarrow (1 - a) V_r + a V

    with the momentum a, or 1 / n at the row's n-th batch where the momentum is None. V is the unbiased covariance, without eps.

    Rows: `running_mean` [C], `running_var` [C] (d = 1) or [Q, d, d], `num_batches_tracked` [], in buffers. A fresh one is mean
    0 and covariance I.

    Source: Ioffe & Szegedy 2015, algorithm 2.
    """

    name = "tracked"
    row_names = ("running_mean", "running_var", "num_batches_tracked")

    def row(self, layer: Layer, mean: Tensor, cov: Tensor, count: Tensor) -> Row:
        return mean, cov.flatten(-3) if layer.algebra.dim == 1 else cov, count

    def update(self, layer: Layer, stats_id: int | Tensor | None, mean: Tensor, cov: Tensor) -> None:
        old_mean, old_var, old_count = read_one(layer, stats_id)
        dtype, count = sum_dtype(old_var.dtype), old_count + 1
        momentum = layer.momentum
        share = count.to(dtype).reciprocal() if momentum is None else old_var.new_full((), momentum, dtype=dtype)
        mean = torch.lerp(old_mean.to(dtype), mean.to(dtype), share)
        var = torch.lerp(old_var.to(dtype), cov.reshape(old_var.shape).to(dtype), share)
        layer.write(stats_id, mean, var, count)

    def evaluation(self, layer: Layer, stats_id: int | Tensor | None) -> tuple[Tensor, Tensor] | None:
        return layer.row_statistics(stats_id)
