"""Statistics that a hypernetwork writes, as it writes any weight."""

from torch import Tensor

from hnetcl.bn.gaussian import statistics
from hnetcl.bn.statistics.base import Layer, StatisticsMode


class GeneratedStatistics(StatisticsMode):
    """Training and evaluation normalize by what the parameters `location` and `factor` stand for; the batch is never looked at.

    The gradient of the training loss reaches them, so nothing else has to teach them, and batches of one are as good as others.

    Rows: none. The parameters `location` [C] and `factor` [C] (d = 1) or [Q, d (d + 1) / 2] are zero at the start: mean 0 and
    covariance I (see `gaussian`).
    """

    name = "generated"
    written = True
    trains_by_batch = False

    def evaluation(self, layer: Layer, stats_id: int | Tensor | None) -> tuple[Tensor, Tensor] | None:
        return statistics(layer.location, layer.factor)
