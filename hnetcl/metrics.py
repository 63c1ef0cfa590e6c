"""What the accuracy matrix says. All functions are pure and work in float64.

R [T, T]: R[i, j] is the test accuracy on task j after training task i, as a fraction. b [T]: the untrained model's accuracies.
Each function reads the entries of its formula and no others: what was not measured may be NaN. No metric reads R[i, j] for
j > i + 1, nor b[0].

    @hnetcl.register("metric", "worst_task")
    def worst_task(R: Tensor) -> float:              # R, b, or both
        return float(R[-1].min())
"""

from torch import Tensor

from hnetcl.registry import make, names, register


@register("metric", "average_accuracy")
def average_accuracy(R: Tensor) -> float:
    """mean_j R[T-1, j]: accuracy over all tasks at the end (Lopez-Paz & Ranzato 2017, equation 2)."""
    return float(R[-1].mean())


@register("metric", "bwt")
def backward_transfer(R: Tensor) -> float:
    """mean_{j<T-1} (R[T-1, j] - R[j, j]) (Lopez-Paz & Ranzato 2017, equation 3). 0 for one task."""
    if len(R) == 1:
        return 0.0
    return float((R[-1] - R.diagonal())[:-1].mean())


@register("metric", "fwt")
def forward_transfer(R: Tensor, b: Tensor) -> float:
    """mean_{j>=1} (R[j-1, j] - b[j]) (Lopez-Paz & Ranzato 2017, equation 4). 0 for one task."""
    if len(R) == 1:
        return 0.0
    return float((R.diagonal(1) - b[1:]).mean())


@register("metric", "forgetting")
def forgetting(R: Tensor) -> float:
    """mean_{j<T-1} (max_{j<=i<T-1} R[i, j] - R[T-1, j]). 0 for one task; may be negative.

    What was right before a task was trained can't be forgotten: the maximum begins at i = j.

    Source: Chaudhry et al. 2018, equation 3 (whose maximum begins at i = 1).
    """
    last = len(R) - 1
    if last == 0:
        return 0.0
    return float(sum(R[j:last, j].max() - R[last, j] for j in range(last)) / last)


@register("metric", "average_incremental_accuracy")
def average_incremental_accuracy(R: Tensor) -> float:
    """mean_i of the mean accuracy over the tasks seen after step i (iCaRL, Rebuffi et al. 2017, section 4)."""
    return float(sum(R[i, : i + 1].mean() for i in range(len(R))) / len(R))


@register("metric", "learning_accuracy")
def learning_accuracy(R: Tensor) -> float:
    """mean_j R[j, j]: accuracy on each task right after its training (Riemer et al. 2019, arXiv:1810.11910, section 5)."""
    return float(R.diagonal().mean())


def summary(R: Tensor, b: Tensor) -> dict[str, float]:
    """All metrics, those that users registered included, by the names that a run's metrics.json uses."""
    R, b = R.double(), b.double()
    return {name: float(make("metric", {"name": name}, R=R, b=b)) for name in names("metric")}
