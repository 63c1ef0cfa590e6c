"""What a method is: the part of training that says what is done about forgetting."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from hnetcl.inference import Classifier
from hnetcl.model import HyperModel
from hnetcl.modules import auxiliary_logits, main_logits
from hnetcl.tasks import ActiveClasses, Loss, Task, TaskSequence, loss_of

CLASSIFIER_WEIGHT = 0.3  # of auxiliary classifiers' losses, as in Szegedy et al. 2015 (arXiv:1409.4842), section 5

Draw = Callable[..., tuple[Tensor, Tensor]]
"""`draw()` -> the current task's next batch: x [N, ...] and labels [N]. `draw(t)`: of an old task, where `sees_old_data`."""


@dataclass
class Run:
    """What a method sees of a run.

    Args:
        model: what is trained, on its device.
        task: the current one's number.
        sequence: of the tasks. A method looks at the data of the current one alone, unless it says `sees_old_data`.
        optimizer: what trains it; a fresh one for every task.
        generator: on the model's device, for what a step draws.
        active_classes: see `TaskSequence.active`.
        step: of the current task, from 0.
        batch_size: images in a step, for methods that draw themselves.
        label_smoothing: of the loss in training, see `loss_of`.
    """

    model: HyperModel
    task: int
    sequence: TaskSequence
    optimizer: Optimizer
    generator: torch.Generator
    active_classes: ActiveClasses = "seen"
    step: int = 0
    batch_size: int = 128
    label_smoothing: float = 0.0

    @property
    def data(self) -> Task:
        """The current task."""
        return self.sequence[self.task]

    def batch(self, x: Tensor, y: Tensor, task: int) -> "Inputs":
        """A batch of a task as a step's inputs."""
        active = self.sequence.active(self.active_classes, self.task, y, task)
        return Inputs(x, y, task, active, loss=self.sequence.loss, label_smoothing=self.label_smoothing)

    def known_outputs(self, y: Tensor) -> Tensor | None:
        """The logits that samples of the current task may have, bool [K]: of the tasks so far; None for all.

        Args:
            y: labels [N], on the device.
        """
        return self.sequence.active("seen" if self.active_classes != "all" else "all", self.task, y)


@dataclass
class Inputs:
    """What a step's loss is computed from. One graph serves all steps: nothing here but tensors may differ between them.

    Args:
        x: the network's input [N, ...].
        y: labels [N]; of a regression, targets.
        task: the batch's: a number, and in `Method.loss` a 0-dim tensor.
        active: which logits the loss looks at, bool [K] or [N, K]; None for all.
        tensors: by name, or lists of such; of the same shapes at every step.
        old: the same with a leading axis of B old tasks, whose length grows with the tasks. Empty where there are none.
        weights: [B], how much each old task counts; None for all alike. See `weighted`.
        grows: whether B does; false where it is the same at all steps of all tasks.
        loss: of the sequence, the same at all steps.
        label_smoothing: of the run, likewise.
    """

    x: Tensor
    y: Tensor
    task: int | Tensor
    active: Tensor | None = None
    tensors: dict[str, Any] = field(default_factory=dict)
    old: dict[str, Any] = field(default_factory=dict)
    weights: Tensor | None = None
    grows: bool = True
    loss: Loss = "cross_entropy"
    label_smoothing: float = 0.0

    def loss_of(self, outputs: Tensor, y: Tensor, active: Tensor | None = None) -> Tensor:
        """The sequence's loss of samples, the mean over their outputs [N, K] that are active, 0-dim."""
        return loss_of(self.loss, active_only(outputs, active), y, self.label_smoothing)

    def split(self, parts: int, **axes: int) -> "list[Inputs]":
        """The same in parts of as many samples, up to one: x, y, and `active` where each sample has its own.

        Args:
            parts: their number, at most that of the samples.
            axes: names in `tensors` and `old` of what each sample has its own part of -> the axis of the samples.
        """

        def share(named: dict[str, Any], part: int) -> dict[str, Any]:
            return {n: v.tensor_split(parts, axes[n])[part] if n in axes else v for n, v in named.items()}

        own = None if self.active is None or self.active.ndim < 2 else self.active.tensor_split(parts)
        pairs = enumerate(zip(self.x.tensor_split(parts), self.y.tensor_split(parts), strict=True))
        return [
            replace(
                self,
                x=x,
                y=y,
                active=self.active if own is None else own[part],
                tensors=share(self.tensors, part),
                old=share(self.old, part),
            )
            for part, (x, y) in pairs
        ]

    def weighted(self, values: Tensor) -> Tensor:
        """Values of the old tasks [B], each times its weight.

        A compiled graph takes one old task for two, the second of which has the weight zero.
        """
        return values if self.weights is None else values * self.weights


class Losses(NamedTuple):
    """What a step found.

    Args:
        total: what backward starts from, 0-dim.
        parts: what it is the sum of, 0-dim each, by the names that are logged. "loss" is that of the task.
        logits: [N, K] of the batch.
    """

    total: Tensor
    parts: dict[str, Tensor]
    logits: Tensor


class Method:
    """Called by the trainer, per task `start_task`; per step `inputs`, `loss`, `after_backward`, `after_step`; `end_task`.

        @hnetcl.register("method", "small_weights")
        class SmallWeights(Method):
            def __init__(self, *, strength: Annotated[float, Ge(0)] = 1e-4) -> None:
                self.strength = strength

            def loss(self, model: HyperModel, inputs: Inputs) -> Losses:
                task = self.task_loss(model(inputs.x, inputs.task), inputs)
                penalty = self.strength * sum(p.square().sum() for p in model.hnet.parameters())
                return Losses(task.total + penalty, {**task.parts, "penalty": penalty}, task.logits)

    Every hook has a default: together they are fine-tuning. All that survives a task is in `state_dict`, so that a resumed run
    starts a task as an uninterrupted one does.
    """

    sees_old_data = False
    """Whether `draw` gives batches of old tasks; otherwise to ask for one is an error."""
    unfit: ClassVar[Mapping[str, str]] = {}
    """Options of the trainer that it can't have (`label_smoothing`, `patience`, `accumulate`), and why not."""

    @property
    def stored_images(self) -> int:
        """Training images that it keeps for later tasks."""
        return 0

    def check(self, model: HyperModel, sequence: TaskSequence) -> None:
        """Called once before the run.

        Raises:
            ArgumentError: the method can't take part in it.
        """

    def classifier(self) -> Classifier | None:
        """What classifies in place of the largest logit, made once for a model: `model.classifier`. None: the logits do.

        A method that classifies otherwise, as `icarl` does, returns a `Classifier` of its own, and teaches
        `run.model.classifier` in `end_task`. What that keeps in buffers is saved: `evaluate` and `hnetcl.load` classify alike.
        """
        return None

    def start_task(self, run: Run) -> None:
        """Keeps what is needed of the state before the current task is trained."""

    def inputs(self, run: Run, draw: Draw) -> Inputs:
        """What the step's loss is computed from: the batch, samples that are replayed, old tasks, targets. Never compiled."""
        return run.batch(*draw(), run.task)

    def micro_batches(self, inputs: Inputs, parts: int) -> list[Inputs]:
        """A step's inputs in parts, the sum of whose losses, weighted by their shares of the samples, is the loss of the whole.

        A class that overrides `inputs` or `loss` and not this takes no `trainer.accumulate`. One whose `inputs` adds tensors of
        which each sample has its own part names them (see `Inputs.split`); penalties need no care, for shares sum to 1.
        """
        return inputs.split(parts)

    def loss(self, model: HyperModel, inputs: Inputs) -> Losses:
        """The step's loss: a pure function of tensors, which may be compiled as one graph."""
        return self.task_loss(model(inputs.x, inputs.task), inputs)

    def after_backward(self, run: Run, inputs: Inputs) -> dict[str, Tensor]:
        """The loss's gradients are in place, and may be changed.

        Returns:
            Further parts of the loss, 0-dim and without graph, whose gradients were added.
        """
        return {}

    def after_step(self, run: Run, inputs: Inputs, losses: Losses) -> None:
        """The optimizer has stepped."""

    def end_task(self, run: Run) -> None:
        """The current task has been trained, and its data are still at hand."""

    def state_dict(self) -> dict[str, Tensor]:
        """All that was learned about the tasks so far; a checkpoint keeps it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`; the tensors may lie on another device."""

    def task_state(self) -> dict[str, Tensor]:
        """What steps have changed since `start_task`, and it can't make again: a checkpoint within a task keeps it.

        A class that overrides `inputs`, `after_backward` or `after_step` and not this has no checkpoints within tasks, only
        between them. One whose steps change nothing of its own returns `{}`.
        """
        return {}

    def load_task_state(self, run: Run, state: Mapping[str, Tensor]) -> None:
        """The inverse of `task_state`, called after `start_task`; the tensors lie on the model's device."""

    def task_loss(self, outputs: Any, inputs: Inputs) -> Losses:
        """The sequence's loss of the batch, with a share of the network's auxiliary classifiers where it has some.

        Args:
            outputs: what the model returned for `inputs.x`.
        """
        logits = main_logits(outputs)
        loss = inputs.loss_of(logits, inputs.y, inputs.active)
        for auxiliary in auxiliary_logits(outputs):
            loss = loss + CLASSIFIER_WEIGHT * inputs.loss_of(auxiliary, inputs.y, inputs.active)
        return Losses(loss, {"loss": loss}, logits)


def resumes_within_task(method: Method) -> bool:
    """Whether a method says what its steps change: no class below that of its `task_state` has another hook of a step."""
    return _knows(method, "task_state", "inputs", "after_backward", "after_step")


def takes_micro_batches(method: Method) -> bool:
    """Whether a method says how its inputs are split: no class below that of its `micro_batches` has other ones, or a loss."""
    return _knows(method, "micro_batches", "inputs", "loss")


def _knows(method: Method, hook: str, *others: str) -> bool:
    """Whether no class of a method overrides one of the others below the class of a hook."""
    classes = type(method).__mro__
    depth = {name: next(i for i, kind in enumerate(classes) if name in vars(kind)) for name in (hook, *others)}
    return depth[hook] <= min(depth[name] for name in others)


def active_only(logits: Tensor, active: Tensor | None) -> Tensor:
    """The logits [N, K] with minus infinity for classes that the loss does not look at."""
    return logits if active is None else logits.masked_fill(~active, -torch.inf)
