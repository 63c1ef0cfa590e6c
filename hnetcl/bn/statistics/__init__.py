"""The statistics modes of a batch-norm layer, one file each: by which mean and covariance it normalizes, and who keeps them."""

from hnetcl.bn.statistics.base import StatisticsMode
from hnetcl.bn.statistics.batch import BatchStatistics
from hnetcl.bn.statistics.distilled import DistilledStatistics
from hnetcl.bn.statistics.frozen import FrozenStatistics
from hnetcl.bn.statistics.generated import GeneratedStatistics
from hnetcl.bn.statistics.learnable import LearnableStatistics
from hnetcl.bn.statistics.tracked import TrackedStatistics

MODES: dict[str, type[StatisticsMode]] = {
    "tracked": TrackedStatistics,
    "learnable": LearnableStatistics,
    "frozen": FrozenStatistics,
    "batch": BatchStatistics,
    "generated": GeneratedStatistics,
    "distilled": DistilledStatistics,
}
"""Every mode, by the name that is given as `BatchNormLayer(stats=...)`: the only list of them."""
STATS = tuple(MODES)

__all__ = [
    "MODES",
    "STATS",
    "BatchStatistics",
    "DistilledStatistics",
    "FrozenStatistics",
    "GeneratedStatistics",
    "LearnableStatistics",
    "StatisticsMode",
    "TrackedStatistics",
]
