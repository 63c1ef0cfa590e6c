"""Which options of a trainer go together with its method and its tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

from hnetcl.errors import ArgumentError
from hnetcl.methods import Method, resumes_within_task
from hnetcl.tasks import TaskSequence

OFF: dict[str, Any] = {  # what is off by default, and was not there when older checkpoints were written
    "label_smoothing": 0.0,
    "clip": None,
    "patience": None,
    "accumulate": 1,
    "optimizer.decays": "all",
    "optimizer.milestones": None,
}


def check_options(
    method: Method,
    sequence: TaskSequence,
    wanted: Mapping[str, Any],
    batch_size: int,
    epochs: Sequence[float],
) -> None:
    """Refuses what could not be done, or would go unused.

    Args:
        wanted: label_smoothing, patience and accumulate.
        epochs: that each task takes, at most.

    Raises:
        ArgumentError: of the option; names the method where that can't have it.
    """
    name = type(method).__name__
    label_smoothing, patience, accumulate = (wanted[each] for each in ("label_smoothing", "patience", "accumulate"))
    for option, reason in method.unfit.items():
        if wanted[option] != OFF[option]:
            raise ArgumentError(option, wanted[option], f"is not for {name}: {reason}; allowed with it: {OFF[option]}")
    if label_smoothing and sequence.loss != "cross_entropy":
        raise ArgumentError("label_smoothing", label_smoothing, "is of classes, and the sequence is a regression; allowed: 0")
    fewest = min(batch_size, *(len(task.train) for task in sequence.tasks))
    if accumulate > 1 and fewest < 2 * accumulate:
        rule = f"leaves fewer than two images in a micro-batch; allowed: 1 to {fewest // 2}, for a step has {fewest} images"
        raise ArgumentError("accumulate", accumulate, rule)
    if patience is None:
        return
    without = next((number for number, task in enumerate(sequence.tasks) if not len(task.val)), None)
    if without is not None:
        raise ArgumentError("patience", patience, f"needs held-out images (task.val_size), and task {without} has none")
    if method.classifier() is not None:
        rule = f"is not for {name}, which classifies otherwise than by the logits whose loss would be looked at"
        raise ArgumentError("patience", patience, f"{rule}; allowed with it: None")
    if not resumes_within_task(method):
        rule = f"is not for {name}, which does not say what its steps change (task_state), so that its best state can't be kept"
        raise ArgumentError("patience", patience, f"{rule}; allowed with it: None")
    if max(epochs) <= 1:
        raise ArgumentError("patience", patience, "goes unused, for no task takes more than an epoch; allowed: None")
