"""The losses that a sequence may have, and by which number a model is scored under each."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hnetcl.errors import ArgumentError

Loss = Literal["cross_entropy", "mean_squared_error"]
"""Of a classification; of a regression to one number for each sample."""


def loss_of(loss: Loss, outputs: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """The mean over a batch, 0-dim.

    Args:
        outputs: logits [N, K], minus infinity for classes that don't come into question; of a regression [N, 1].
        y: labels [N], or targets [N].
        smoothing: of labels, s: the label weighs 1 - s, and every class that comes into question s over their number. Not of a
            regression.

    Source: Szegedy et al. 2016 (arXiv:1512.00567), section 7, on smoothing.
    """
    if loss != "cross_entropy":
        return F.mse_loss(outputs[:, 0], y)
    hard = F.cross_entropy(outputs, y)
    if not smoothing:
        return hard
    absent = outputs == -torch.inf  # torch's own smoothing would count these classes too, and be infinite
    log_p = F.log_softmax(outputs, 1).masked_fill(absent, 0.0)
    even = -(log_p.sum(1) / absent.logical_not().sum(1)).mean()
    return (1 - smoothing) * hard + smoothing * even


def score_name(loss: Loss) -> str:
    """What the numbers of R are: the fraction that is classified right, or the coefficient of determination."""
    return "accuracy" if loss == "cross_entropy" else "R^2"


def score(loss: Loss, outputs: Tensor, y: Tensor) -> Tensor:
    """The accuracy, or R^2, of a batch, 0-dim and on its device; the rest as in `loss_of`."""
    if loss == "cross_entropy":
        return (outputs.argmax(1) == y).float().mean()
    return 1 - (outputs[:, 0] - y).square().sum() / (y - y.mean()).square().sum()


def require_regression(dataset: str, head: str, tasks: Sequence[Any]) -> None:
    """Refuses what is no sequence of regressions to one number, or could not be scored.

    Raises:
        ArgumentError: targets that are no floats or not finite, that are all the same (R^2 is not defined), or several outputs;
            or a head for all classes.
    """
    if head == "all":
        raise ArgumentError("head", head, f"is for classes, and {dataset} is a regression; allowed: task, shared")
    for number, task in enumerate(tasks):
        for kind, split in (("training", task.train), ("validation", task.val), ("test", task.test)):
            if len(split) or kind != "validation":
                fault = _faulty_targets(kind, split.labels, task.classes)
                if fault:
                    raise ArgumentError("dataset", dataset, f"task {number} {fault}")


def _faulty_targets(kind: str, y: Tensor, outputs: Sequence[str]) -> str:
    """What is wrong with the targets of a split, or nothing."""
    if len(outputs) != 1:
        return f"names {len(outputs)} outputs, but a regression has one"
    if y.dtype != torch.float32:
        return f"has {kind} targets of {y.dtype}, but a regression needs float32"
    if not y.isfinite().all():
        return f"has {kind} targets that are not finite"
    if len(y) < 2 or bool((y == y[0]).all()):
        return f"has {kind} targets that are all the same, for which R^2 is not defined"
    return ""
