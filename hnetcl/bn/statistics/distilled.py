"""Running averages that are taught to a hypernetwork."""

from torch import Tensor

from hnetcl.bn.gaussian import divergence, statistics
from hnetcl.bn.statistics.base import Layer
from hnetcl.bn.statistics.tracked import TrackedStatistics


class DistilledStatistics(TrackedStatistics):
    r"""Training is that of `tracked`; an auxiliary loss pulls `location` and `factor` towards the row; evaluation uses them.

    .. math:: KL(N(\mu_r, V_r) \,\|\, N(\mu_w, V_w))

    with what is written, w, and the row r after the batch has moved it. A hypernetwork that writes `location` and `factor` so
    learns each task's statistics; the rows are needed only as long as a task is trained.

    Rows: as in `tracked`. The parameters `location` and `factor` are as in `generated`.
    """

    name = "distilled"
    written = True
    has_auxiliary_loss = True

    def evaluation(self, layer: Layer, stats_id: int | Tensor | None) -> tuple[Tensor, Tensor] | None:
        return statistics(layer.location, layer.factor)

    def auxiliary_loss(self, layer: Layer, stats_id: int | Tensor | None, mean: Tensor, cov: Tensor) -> Tensor:
        mean, cov = layer.row_statistics(stats_id)
        return divergence(mean, cov, layer.location, layer.factor)
