"""The batch's own statistics, in evaluation too."""

from hnetcl.bn.statistics.base import StatisticsMode


class BatchStatistics(StatisticsMode):
    """Training and evaluation normalize by the statistics of the batch at hand.

    So what comes out for a sample depends on the others in its batch, a batch of one value per channel is refused in evaluation
    too, and samples have no gradients of their own, which Fisher information would need. It is what torch's layers do with
    `track_running_stats=False`.

    Rows: none.
    """

    name = "batch"
    evaluates_by_batch = True
