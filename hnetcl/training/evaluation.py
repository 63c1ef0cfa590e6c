"""Accuracy of a model on tasks; of regressions, the coefficient of determination."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hnetcl.bn import BATCH, batchnorm_layers
from hnetcl.errors import ArgumentError, one_of
from hnetcl.inference import Candidates, Criterion, as_criterion, candidates, compare_tasks, learns
from hnetcl.model import HyperModel
from hnetcl.modes import evaluation_mode
from hnetcl.modules import main_logits
from hnetcl.tasks import Loss, Split, Task, TaskSequence, batch_sizes

SCENARIOS = ("task", "domain", "class")

See = Callable[[int, Tensor, Tensor, Tensor], None]
"""Of a batch: its task's number; the logits [N, K] that come into question where the task is told; the labels [N]; and which
images are right, as the scenario counts it, bool [N]."""

LARGEST_OUTPUT, LARGEST_OUTPUT_ON_GPU = 3 * 2**20, 2**26  # values that a layer gives for the images of an evaluation step


@dataclass(frozen=True)
class Protocol:
    """What a model is told at test time, and what it must find (van de Ven & Tolias, arXiv:1904.07734).

    Args:
        scenario: "task": the task is told. "domain": it is not, and only the class within the task counts. "class": both the
            task and the class within it must be found.
        inference: by what the task is found, a name or a configuration, see `infer_tasks`; of no account for a network that
            is the same for all tasks.
        batch_size: images at a time.
        head: which logits the network has, see `TaskSequence`. With those of all classes, no others come into question than
            those of the tasks seen so far, or of the task that is told or inferred.
        counts: classes of each task; where left out, all have as many as the one that is tested.
        loss: of the sequence.

    Raises:
        ArgumentError: there is no such scenario or inference, or it is about classes and the sequence is a regression.
    """

    scenario: str = "task"
    inference: Criterion = "entropy"
    batch_size: int = 250
    head: str = "task"
    counts: Sequence[int] = ()
    loss: Loss = "cross_entropy"

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise one_of("scenario", self.scenario, SCENARIOS)
        as_criterion(self.inference)
        if self.scenario == "class" and self.loss != "cross_entropy":
            raise ArgumentError(
                "scenario", "class", "is about classes, and the sequence is a regression; allowed: task, domain"
            )

    def outputs(self, tasks: int, classes: int) -> list[tuple[int, int]] | None:
        """From which logit to before which one each of the first tasks looks; None where all look at all.

        Args:
            classes: of each task, where `counts` does not say it.
        """
        counts = list(self.counts[:tasks]) or [classes] * tasks
        if self.head == "all":
            return list(pairwise(accumulate(counts, initial=0)))
        return [(0, each) for each in counts] if self.head == "task" and len(set(self.counts)) > 1 else None

    def infers(self, model: HyperModel) -> bool:
        """Whether tasks are inferred: they are not told, and the network differs between them."""
        return self.scenario != "task" and model.is_conditioned

    def check(self, model: HyperModel) -> None:
        """Refuses a way of inference, other than the default, that would go unused.

        Raises:
            ArgumentError: tasks are not told, and the network is the same for all of them.
        """
        name = as_criterion(self.inference)["name"]
        if self.scenario != "task" and name != "entropy" and not model.is_conditioned:
            raise ArgumentError("inference", name, "goes unused, for the network is the same for all tasks; allowed: entropy")

    def recognizes(self, model: HyperModel) -> bool:
        """Whether they are inferred by what the model's recognizer learns when they have been trained."""
        return self.infers(model) and learns(self.inference)


class Accuracy(NamedTuple):
    """Fractions of a split's images.

    Args:
        right: those that are classified right, as the scenario counts it.
        known: those whose task is known; 1 where it is told, NaN where nobody asks for it.
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
    see: See | None = None,
) -> Accuracy:
    """How much of a split the model classifies right; of a regression, `right` is R^2, 1 at best.

    Args:
        number: of the task that the split belongs to.
        stats: whose row of statistics, or `bn.BATCH` for each batch's own; the task's row where left out. Only where the task
            is told.
        seen: tasks that come into question, the first so many.
        among: these tasks, where they have been written already.
        see: is given every batch.

    Raises:
        ArgumentError: the batch's statistics are to be used, of a single image.
        ArgumentError: tasks are to be inferred, and the model has a classifier.
        ArgumentError: the scenario is "class", but the network neither differs between tasks nor has a logit for each class.
        ArgumentError: the head is "task", the network is the same for all tasks, and tasks differ in their number of classes.
        ArgumentError: the split has no images, or the network has not a logit for each class: that is no classification.
    """
    if not len(split):
        raise ArgumentError("split", tuple(split.images.shape), f"task {number} has no images there")
    if protocol.loss != "cross_entropy":
        return Accuracy(_determination(model, number, task, split, protocol, stats), 1.0, math.nan)
    seen = model.hnet.num_tasks if seen is None else seen
    outputs = protocol.outputs(max(seen, number + 1), len(task.classes))
    if outputs is not None and protocol.head == "task" and not model.is_conditioned:
        rule = "tasks have logits of their own, but the network is the same for all and their number of classes is not"
        raise ArgumentError("head", protocol.head, f"{rule}; allowed: all, shared")
    told = protocol.scenario == "task"
    if protocol.infers(model) and model.classifier is not None:
        rule = "needs a network that is the same for all tasks, for the model classifies by more than logits"
        raise ArgumentError("scenario", protocol.scenario, f"{rule}; allowed here: task")
    if protocol.infers(model) and among is None:
        among = candidates(model, protocol.inference, seen, outputs)
    if protocol.scenario == "class" and among is None and protocol.head != "all":
        rule = "has no logit for each class, and the network is the same for all tasks; allowed with scenario=class: all"
        raise ArgumentError("head", protocol.head, rule)
    if protocol.scenario == "class" and number >= seen:
        return Accuracy(0.0, 0.0, math.nan)  # its images are taken for other tasks', whatever the logits
    counts = torch.zeros(3, dtype=torch.long, device=split.labels.device)
    sizes = batch_sizes(len(split), protocol.batch_size)
    batches = zip(split.images.split(sizes), split.labels.split(sizes), strict=True)
    with evaluation_mode(model):
        params = model.hnet(number) if among is None else {}
        for images, labels in batches:
            x = task.preprocess(images)
            if among is None:
                logits = _run(model, params, x, number, stats)
                _require_classes(logits, labels, task)
                own = logits if outputs is None else logits[:, slice(*outputs[number])]
                found = torch.full_like(labels, number)
                if outputs is not None and protocol.head == "all" and not told:
                    best = logits[:, : outputs[seen - 1][1]].argmax(1)
                    firsts = torch.tensor([first for first, _ in outputs[:seen]], device=best.device)
                    found = torch.bucketize(best, firsts, right=True) - 1
                    chosen = best - firsts[found]
                else:
                    chosen = own.argmax(1)
            else:
                found, every = compare_tasks(model, x, among)
                own = every[min(number, len(every) - 1)]
                chosen = every[found, torch.arange(len(x), device=x.device)].argmax(1)
            if among is None or number < len(every):  # a task that does not come into question may have more classes
                _require_classes(own, labels, task)
            in_task, correct = found == number, chosen == labels
            if protocol.scenario == "class":
                correct = correct & in_task
            if see is not None:
                see(number, own, labels, correct)
            counts += torch.stack([correct, in_task, own.argmax(1) == labels]).sum(1)
    right, known, aware = (count / len(split) for count in counts.tolist())
    if among is not None and number >= len(among.tasks):
        aware = math.nan
    if not told and among is None and protocol.head != "all":
        known = math.nan  # nobody asks
    return Accuracy(right, known, aware)


def _determination(
    model: HyperModel, number: int, task: Task, split: Split, protocol: Protocol, stats: int | str | None
) -> float:
    r"""R^2 of a split, in float64: 1 - \sum_n (y_n - f(x_n))^2 / \sum_n (y_n - \bar y)^2, with the mean over the split.

    Raises:
        ArgumentError: the task is to be inferred, or the network's outputs are not [N, 1].
    """
    if protocol.infers(model):
        rule = (
            "tasks are inferred by their classes, and the sequence is a regression; allowed: task, or hnet=direct with domain"
        )
        raise ArgumentError("scenario", protocol.scenario, rule)
    sizes, errors = batch_sizes(len(split), protocol.batch_size), []
    with evaluation_mode(model):
        params = model.hnet(number)
        for x, y in zip(split.images.split(sizes), split.labels.split(sizes), strict=True):
            outputs = _run(model, params, task.preprocess(x), number, stats)
            if outputs.shape != (len(y), 1):
                raise ArgumentError("outputs", list(outputs.shape), f"must be [{len(y)}, 1], for the sequence is a regression")
            errors.append((outputs[:, 0].double() - y.double()).square().sum())
    y = split.labels.double()
    return float(1 - torch.stack(errors).sum() / (y - y.mean()).square().sum())


def _run(model: HyperModel, params: dict[str, Tensor], x: Tensor, task: int, stats: int | str | None) -> Tensor:
    try:
        if model.classifier is not None:
            scores: Tensor = model.classifier(model, params, x, task, stats)
            return scores
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
    tasks: Iterable[int] | None = None,
    stats: int | str | None = None,
    seen: int | None = None,
    split: Literal["test", "val"] = "test",
    see: See | None = None,
) -> Accuracies:
    """How much of the test images of some tasks, or of all, the model classifies right; the rest as in `accuracy`.

    Args:
        split: "val" for the held-out images.
    """
    chosen = range(len(sequence)) if tasks is None else tasks
    protocol = replace(protocol, counts=sequence.class_counts, loss=sequence.loss)
    with evaluation_mode(model):
        among = None
        if protocol.infers(model) and protocol.loss == "cross_entropy":
            among = candidates(model, protocol.inference, seen, protocol.outputs(len(sequence), sequence.num_classes))
        values = [
            accuracy(model, t, sequence[t], getattr(sequence[t], split), protocol, stats, seen, among, see) for t in chosen
        ]
    return Accuracies(*torch.tensor(values, dtype=torch.float64).reshape(-1, 3).unbind(1))
