"""What the accuracy matrix says, and what the logits say. All functions are pure and work in float64.

R [T, T]: R[i, j] is the test accuracy on task j after training task i, as a fraction. b [T]: the untrained model's accuracies.
Each function reads the entries of its formula and no others: what was not measured may be NaN. No metric reads R[i, j] for
j > i + 1, nor b[0].

logits, labels: of each task's test images after the last task, the task told: [N, K] and [N], K being the logits that come into
question there, on the CPU. Tasks count alike, whatever their number of images.

    @hnetcl.register("metric", "worst_task")
    def worst_task(R: Tensor) -> float:              # names what it reads of R, b, logits, labels
        return float(R[-1].min())
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hnetcl.registry import given, make, names, register

BINS = 15  # of confidences, as in Guo et al. 2017, section 4


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


@register("metric", "calibration_error")
def calibration_error(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> float:
    """The expected calibration error, mean over tasks of sum_m |B_m| / N |acc(B_m) - conf(B_m)|.

    B_m are the images whose largest probability lies in ((m - 1) / 15, m / 15], conf(B_m) the mean of these probabilities.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    return float(sum(map(_calibration_error, logits, labels)) / len(logits))


def _calibration_error(logits: Tensor, labels: Tensor) -> Tensor:
    sure, predicted = logits.double().softmax(1).max(1)
    bins = (sure.nan_to_num(1.0) * BINS).ceil().long() - 1  # of logits that are not finite the error is NaN, in any bin
    gaps = torch.zeros(BINS, dtype=sure.dtype).index_add(0, bins, (predicted == labels).double() - sure)
    return gaps.abs().sum() / len(labels)


@register("metric", "negative_log_likelihood")
def negative_log_likelihood(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> float:
    """Mean over tasks of mean_n -log softmax(logits[n])[labels[n]], in nats (Guo et al. 2017, arXiv:1706.04599, equation 6)."""
    losses = [F.cross_entropy(own.double(), known) for own, known in zip(logits, labels, strict=True)]
    return float(sum(losses) / len(losses))


def summary(
    R: Tensor, b: Tensor, logits: Sequence[Tensor] | None = None, labels: Sequence[Tensor] | None = None
) -> dict[str, float]:
    """All metrics, those that users registered included, by the names that a run's metrics.json uses.

    Those that ask for logits or labels are left out where these are not given.
    """
    offered: dict[str, object] = {"R": R.double(), "b": b.double()}
    offered |= {name: value for name, value in (("logits", logits), ("labels", labels)) if value is not None}
    lacking = {"logits", "labels"} - offered.keys()
    chosen = [name for name in names("metric") if not lacking & set(given("metric", name))]
    return {name: float(make("metric", {"name": name}, **offered)) for name in chosen}
