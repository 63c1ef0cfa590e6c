"""Experience replay: samples of old tasks from a memory of fixed size."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.memory import require
from hnetcl.methods.base import Draw, Inputs, Losses, Method, Run
from hnetcl.model import HyperModel
from hnetcl.modules import main_logits
from hnetcl.registry import register
from hnetcl.tasks import TaskSequence
from hnetcl.tasks.memory import Memory, Samples


@register("method", "replay")
class Replay(Method):
    """Adds the loss on as many samples of old tasks as a batch has, from a class-balanced reservoir (see `Memory`).

    A network that is the same for all tasks sees the batch and the replayed samples, of all old tasks mixed, in one forward.
    One that differs between tasks takes the samples of one old task at a step, drawn anew each time, under that task.

    Args:
        size: samples in memory, for all tasks together.
        weight: of the loss on old tasks; that of the batch is 1.
        weighting: "fixed", as `weight` says; "tasks": in task t, counted from 1, the batch's loss weighs 1/t and that on old
            tasks `weight` (1 - 1/t), so that with weight 1 each task counts the same (van de Ven et al. 2022).
        shares: of a class in memory: "seen", as much as each class seen so far can have, fewer as classes come; "all", the
            same from the first task to the last, `size` over the number of all classes.

    Sources: Chaudhry et al. 2019 (arXiv:1902.10486); Robins 1995; on the weighting, the code of van de Ven et al. 2022.
    """

    def __init__(
        self,
        *,
        size: Annotated[int, Ge(1)] = 2000,
        weight: Annotated[float, Ge(0)] = 1.0,
        weighting: Literal["fixed", "tasks"] = "fixed",
        shares: Literal["seen", "all"] = "seen",
    ) -> None:
        self.size, self.weight, self.weighting, self.shares = size, weight, weighting, shares
        self.memory = Memory(size, 1)

    @property
    def stored_images(self) -> int:
        return int(self.memory.seen.clamp(max=self.memory.share).sum())

    def check(self, model: HyperModel, sequence: TaskSequence) -> None:
        classes = sum(sequence.class_counts)
        if self.size < classes:
            raise ArgumentError("size", self.size, f"must be at least {classes}: one sample for each class of all tasks")
        require("size", self.size, 4.0 * self.size * math.prod(sequence.in_shape))
        self.memory = Memory(self.size, sequence.class_counts, self.size // classes if self.shares == "all" else None)

    def start_task(self, run: Run) -> None:
        self.memory.to(run.generator.device)
        self.memory.open(run.task + 1)

    def inputs(self, run: Run, draw: Draw) -> Inputs:
        inputs = super().inputs(run, draw)
        if run.task:
            self.replay(inputs, run, "memory", len(inputs.y))
            if self.weighting == "tasks":
                inputs.tensors["new"] = torch.full((), 1 / (run.task + 1), device=inputs.y.device)
        return inputs

    def replay(self, inputs: Inputs, run: Run, name: str, number: int) -> None:
        """Adds replayed samples to a step's inputs, under a name."""
        tasks = run.sequence.task_of_class(inputs.y.device)[: run.sequence.first_class(run.task + 1)]
        task = torch.full((), run.task, device=inputs.y.device)
        if run.model.is_conditioned:
            task = torch.randint(run.task, (), generator=run.generator, device=inputs.y.device)
            chosen = tasks == task
        else:
            chosen = tasks < run.task
        samples = self.memory.draw(number, chosen, run.generator)
        active = run.sequence.active(run.active_classes, run.task, samples.y, task)
        inputs.tensors |= {f"{name}.{key}": value for key, value in samples._asdict().items()}
        inputs.tensors |= {f"{name}.task": task} | ({} if active is None else {f"{name}.active": active})

    def micro_batches(self, inputs: Inputs, parts: int) -> list[Inputs]:
        """Replayed samples are as many as those of the batch, and split like them."""
        per_sample = {f"{name}.{key}" for name in ("memory", "logits") for key in Samples._fields}
        per_sample |= {n for n, v in inputs.tensors.items() if n.endswith(".active") and v.ndim > 1}
        return inputs.split(parts, **dict.fromkeys(per_sample, 0))

    def loss(self, model: HyperModel, inputs: Inputs) -> Losses:
        task, replayed = self.losses(model, inputs, ["memory"])
        if not replayed:
            return task
        own, (logits, samples) = inputs.tensors, replayed[0]
        old = self.weight * inputs.loss_of(logits, samples.y, own.get("memory.active"))
        if "new" in own:
            task = Losses(task.total * own["new"], {n: v * own["new"] for n, v in task.parts.items()}, task.logits)
            old = old * (1 - own["new"])
        return Losses(task.total + old, {**task.parts, "replay": old}, task.logits)

    def losses(self, model: HyperModel, inputs: Inputs, names: list[str]) -> tuple[Losses, list[tuple[Tensor, Samples]]]:
        """The batch's loss, and of every replayed group of samples its logits; none in the first task."""
        names = [name for name in names if f"{name}.x" in inputs.tensors]
        groups = [Samples(*(inputs.tensors[f"{name}.{key}"] for key in Samples._fields)) for name in names]
        if model.is_conditioned or not groups:
            task = super().loss(model, inputs)
            tasks = [inputs.tensors[f"{name}.task"] for name in names]
            return task, [(main_logits(model(each.x, t)), each) for each, t in zip(groups, tasks, strict=True)]
        sizes = [len(inputs.y), *(len(each.y) for each in groups)]
        mixed = main_logits(model(torch.cat([inputs.x, *(each.x for each in groups)]), inputs.task))
        own, *logits = mixed.split(sizes)
        return self.task_loss(own, inputs), list(zip(logits, groups, strict=True))

    def after_step(self, run: Run, inputs: Inputs, losses: Losses) -> None:
        self.memory.add(inputs.x, inputs.y, losses.logits, run.sequence.strata(run.task, inputs.y), run.generator)

    def task_state(self) -> dict[str, Tensor]:
        return self.memory.state_dict()

    def load_task_state(self, run: Run, state: Mapping[str, Tensor]) -> None:
        self.memory.load_state_dict(state)

    def state_dict(self) -> dict[str, Tensor]:
        return self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.memory.load_state_dict(state)
