"""Accuracy of a model on tasks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hnetcl.bn import BATCH, batchnorm_layers
from hnetcl.choices import INFERENCES, SCENARIOS
from hnetcl.errors import ArgumentError, one_of
from hnetcl.inference import Candidates, candidates, compare_tasks
from hnetcl.model import HyperModel
from hnetcl.modes import evaluation_mode
from hnetcl.modules import main_logits
from hnetcl.tasks import Split, Task, TaskSequence

LARGEST_OUTPUT, LARGEST_OUTPUT_ON_GPU = 3 * 2**20, 2**26  # numbers that a layer gives for the images of an evaluation step


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

    Raises:
        ArgumentError: the batch's statistics are to be used, of a single image.
        ArgumentError: the split has no images, or the network has not a logit for each class: that is no classification.
    """
    if not len(split):
        raise ArgumentError("split", tuple(split.images.shape), f"task {number} has no images there")
    right = torch.zeros((), dtype=torch.long, device=split.labels.device)
    known, aware = torch.zeros_like(right), torch.zeros_like(right)
    sizes = batch_sizes(len(split), protocol.batch_size)
    batches = zip(split.images.split(sizes), split.labels.split(sizes), strict=True)
    with evaluation_mode(model):
        params: dict[str, Tensor] = {}
        if protocol.scenario == "task":
            params = model.hnet(number)
        elif among is None:
            among = candidates(model, protocol.inference, seen)
        if protocol.scenario == "class" and among is not None and number >= len(among.tasks):
            return Accuracy(0.0, 0.0, math.nan)  # its images are taken for other tasks', whatever the logits
        for images, labels in batches:
            x = task.preprocess(images)
            if among is None:
                logits = _run(model, params, x, number, stats)
                found = torch.ones_like(labels, dtype=torch.bool)
            else:
                tasks, every = compare_tasks(model, x, among)
                found, logits = tasks == number, every[tasks, torch.arange(len(x), device=x.device)]
                if number < len(every):
                    aware += (every[number].argmax(1) == labels).sum()
            _require_classes(logits, labels, task)
            correct = logits.argmax(1) == labels
            right += (correct & found if protocol.scenario == "class" else correct).sum()
            known += found.sum()
    counts = [count / len(split) for count in torch.stack([right, known, aware]).tolist()]
    if among is None:
        counts[2] = counts[0]
    elif number >= len(among.tasks):
        counts[2] = math.nan
    return Accuracy(*counts)


def _run(model: HyperModel, params: dict[str, Tensor], x: Tensor, task: int, stats: int | str | None) -> Tensor:
    try:
        return main_logits(model.run(params, x, task, stats))
    except ValueError as error:
        by_batch = stats == BATCH or any(
            layer.statistics_mode.evaluates_by_batch for layer in batchnorm_layers(model.net).values()
        )
        if len(x) > 1 or not by_batch:
            raise
        raise ArgumentError("stats", "batch", "can't be used for a batch of one image, which has no statistics") from error


@torch.no_grad()
def images_at_once(model: HyperModel, task: Task) -> int:
    """How many images an evaluation takes at a time where nobody says: the largest output of a layer then fits a CPU's cache.

    Found by a pass of two images, so that it depends on the model alone.
    """
    x = task.preprocess(task.test.images[:2])
    largest = x.numel()

    def see(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        largest = max(largest, *(leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), 0)

    handles = [module.register_forward_hook(see) for module in model.net.modules()]
    try:
        with evaluation_mode(model):
            model(x, 0)
    finally:
        for handle in handles:
            handle.remove()
    return max(2, (LARGEST_OUTPUT if x.is_cpu else LARGEST_OUTPUT_ON_GPU) * len(x) // largest)


def batch_sizes(count: int, size: int) -> list[int]:
    """Sizes of batches of `count` images, at most `size` each.

    None is 1 where that can be, for a batch of one has no statistics of its own.
    """
    sizes = [size] * (count // size) + [count % size] * (count % size > 0)
    if size > 2 and sizes[-1:] == [1] and len(sizes) > 1:
        sizes[-2:] = [size - 1, 2]
    return sizes


def _require_classes(logits: Tensor, labels: Tensor, task: Task) -> None:
    """A classification needs a logit for each of the task's classes, and two classes at least."""
    least = max(2, len(task.classes))
    if logits.ndim != 2 or len(logits) != len(labels) or logits.shape[1] < least:
        rule = f"must be [{len(labels)}, K] with K at least {least}, for the task has {len(task.classes)} classes"
        raise ArgumentError("logits", list(logits.shape), rule)


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
    with evaluation_mode(model):
        among = None if protocol.scenario == "task" else candidates(model, protocol.inference, seen)
        values = [accuracy(model, t, sequence[t], sequence[t].test, protocol, stats, seen, among) for t in chosen]
    return Accuracies(*torch.tensor(values, dtype=torch.float64).reshape(-1, 3).unbind(1))
