"""Accuracy of a model on tasks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hnetcl.choices import INFERENCES, SCENARIOS
from hnetcl.errors import one_of
from hnetcl.inference import Candidates, candidates, compare_tasks
from hnetcl.model import HyperModel
from hnetcl.tasks import Split, Task, TaskSequence


@dataclass(frozen=True)
class Protocol:
    """What a model is told at test time, and what it must find (van de Ven & Tolias, arXiv:1904.07734).

    Args:
        scenario: "task": the task is told. "domain": it is not, and only the class within the task counts. "class": both the
            task and the class within it must be found.
        inference: by what the task is found, see `infer_tasks`.
        batch_size: images at a time.

    Raises:
        ArgumentError: there is no such scenario or inference.
    """

    scenario: str = "task"
    inference: str = "entropy"
    batch_size: int = 250

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise one_of("scenario", self.scenario, SCENARIOS)
        if self.inference not in INFERENCES:
            raise one_of("inference", self.inference, INFERENCES)


class Accuracy(NamedTuple):
    """Fractions of a split's images.

    Args:
        right: those that are classified right, as the scenario counts it.
        known: those whose task is known; 1 where it is told.
        aware: those that are classified right where the task is told; NaN where it did not come into question.
    """

    right: float
    known: float
    aware: float


class Accuracies(NamedTuple):
    """The same of some tasks' test images, [B] in float64 each."""

    right: Tensor
    known: Tensor
    aware: Tensor


@torch.no_grad()
def accuracy(
    model: HyperModel,
    number: int,
    task: Task,
    split: Split,
    protocol: Protocol,
    stats: int | str | None = None,
    seen: int | None = None,
    among: Candidates | None = None,
) -> Accuracy:
    """How much of a split the model classifies right.

    Args:
        number: of the task that the split belongs to.
        stats: whose row of statistics, or `bn.BATCH` for each batch's own; the task's row where left out. Only where the task
            is told.
        seen: tasks that come into question, the first so many.
        among: these tasks, where they have been written already.
    """
    training = model.training
    model.eval()
    params: dict[str, Tensor] = {}
    if protocol.scenario == "task":
        params = model.hnet(number)
    elif among is None:
        among = candidates(model, protocol.inference, seen)
    if protocol.scenario == "class" and among is not None and number >= len(among.tasks):
        model.train(training)
        return Accuracy(0.0, 0.0, math.nan)  # its images are taken for other tasks', whatever the logits
    right = torch.zeros((), dtype=torch.long, device=split.labels.device)
    known, aware = torch.zeros_like(right), torch.zeros_like(right)
    for images, labels in zip(split.images.split(protocol.batch_size), split.labels.split(protocol.batch_size), strict=True):
        x = task.preprocess(images)
        if among is None:
            logits = model.run(params, x, number if stats is None else stats)
            found = torch.ones_like(labels, dtype=torch.bool)
        else:
            tasks, every = compare_tasks(model, x, among)
            found, logits = tasks == number, every[tasks, torch.arange(len(x), device=x.device)]
            if number < len(every):
                aware += (every[number].argmax(1) == labels).sum()
        correct = logits.argmax(1) == labels
        right += (correct & found if protocol.scenario == "class" else correct).sum()
        known += found.sum()
    model.train(training)
    counts = [count / len(split) for count in torch.stack([right, known, aware]).tolist()]
    if among is None:
        counts[2] = counts[0]
    elif number >= len(among.tasks):
        counts[2] = math.nan
    return Accuracy(*counts)


def accuracies(
    model: HyperModel,
    sequence: TaskSequence,
    protocol: Protocol,
    tasks: Sequence[int] | None = None,
    stats: int | str | None = None,
    seen: int | None = None,
) -> Accuracies:
    """How much of the test images of some tasks, or of all, the model classifies right; the rest as in `accuracy`."""
    chosen = range(len(sequence)) if tasks is None else tasks
    training = model.training
    model.eval()
    among = None if protocol.scenario == "task" else candidates(model, protocol.inference, seen)
    values = [accuracy(model, t, sequence[t], sequence[t].test, protocol, stats, seen, among) for t in chosen]
    model.train(training)
    return Accuracies(*torch.tensor(values, dtype=torch.float64).reshape(-1, 3).unbind(1))
