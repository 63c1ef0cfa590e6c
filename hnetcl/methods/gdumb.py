"""GDumb: a balanced memory, and a network trained from scratch on it."""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from hnetcl.bn import VirtualBatchNormLayer, learned_values, norm_layers
from hnetcl.errors import ArgumentError
from hnetcl.memory import require
from hnetcl.methods.base import Draw, Inputs, Method, Run
from hnetcl.model import HyperModel
from hnetcl.registry import register
from hnetcl.tasks import TaskSequence
from hnetcl.tasks.exemplars import Exemplars, even_counts


@register("method", "gdumb")
class GDumb(Method):
    """Greedy sampler and dumb learner: before each task its images fill their share of a memory, which is even over all classes
    so far; then all that learns goes back to its initial values, and is trained on the memory alone, for the steps of a task.

    Each image of a step is a random one of memory. A network that differs between tasks takes images of one task at a step:
    0, 1, ..., t, 0, 1, ... in turn. The control of the field: what a method with as many stored images should exceed.

    Args:
        size: images in memory, for all tasks together.

    Differences from the authors' code: tasks come whole, so that a task's images are chosen at once and by chance, not one by
    one; no CutMix, but the augmentation of the sequence; optimizer, schedule and steps are the run's.

    Source: Prabhu et al. 2020 (ECCV), GDumb: a simple approach that questions our progress in continual learning, section 3.
    """

    unfit: ClassVar = {"patience": "the images of the current task are not what it is trained on"}

    def __init__(self, *, size: Annotated[int, Ge(1)] = 2000) -> None:
        self.size = size
        self.memory = Exemplars(size)
        self.initial: dict[str, Tensor] = {}

    @property
    def stored_images(self) -> int:
        return len(self.memory)

    def check(self, model: HyperModel, sequence: TaskSequence) -> None:
        if sequence.loss != "cross_entropy":
            raise ArgumentError("name", "gdumb", "keeps as many images of each class, and the sequence is a regression")
        classes = sum(sequence.class_counts)
        if self.size < classes:
            raise ArgumentError("size", self.size, f"must be at least {classes}: one image for each class of all tasks")
        if any(isinstance(layer, VirtualBatchNormLayer) for layer in norm_layers(model.net).values()):
            rule = "takes reference batches that are not of the memory; allowed with method=gdumb: layer, fused"
            raise ArgumentError("bn.name", "virtual", rule)
        if model.recognizer is not None and model.is_conditioned:
            rule = "trains all anew in every task, but inference learns what tasks look like when they end"
            raise ArgumentError("name", "gdumb", f"{rule}; allowed: inference=entropy, or another that learns nothing")
        require("size", self.size, float(self.size * math.prod(sequence.in_shape)))

    def start_task(self, run: Run) -> None:
        self._fill(run)
        values = learned_values(run.model)
        if run.task == 0:
            self.initial = {name: value.detach().clone() for name, value in values.items()}
        with torch.no_grad():
            for name, value in values.items():
                value.copy_(self.initial[name])
            for name, rows in run.model.buffers_by_task.rows.items():
                rows.copy_(run.model.net.get_buffer(name))  # where they start, see `TaskBuffers`
        run.optimizer.state.clear()

    def _fill(self, run: Run) -> None:
        memory, data, first = self.memory, run.data, run.sequence.first_class(run.task)
        memory.to(run.generator.device)
        order = torch.randperm(len(data.train), generator=run.generator, device=run.generator.device)
        fresh = data.train.labels[order]
        counts = even_counts([*memory.held(first), *fresh.bincount(minlength=len(data.classes)).tolist()], self.size)
        memory.shrink(counts[:first])
        for number, count in enumerate(counts[first:]):
            memory.add(data.train.images[order[fresh == number][:count]], first + number)

    def inputs(self, run: Run, draw: Draw) -> Inputs:
        conditioned, number = run.model.is_conditioned, run.task
        tasks = self.memory.tasks(run.sequence)
        chosen = torch.ones_like(tasks, dtype=torch.bool)
        if conditioned:
            number = run.step % (run.task + 1)
            chosen = tasks == number
        places = torch.multinomial(chosen.float(), run.batch_size, replacement=True, generator=run.generator)
        among = [number] if conditioned else range(run.task + 1)
        x = self.memory.inputs(places, run.sequence, among, run.generator)
        return run.batch(x, self.memory.labels(run.sequence)[places], number)

    def micro_batches(self, inputs: Inputs, parts: int) -> list[Inputs]:
        return inputs.split(parts)

    def task_state(self) -> dict[str, Tensor]:
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return self.memory.state_dict() | {f"initial.{name}": value for name, value in self.initial.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.memory.load_state_dict({name: value for name, value in state.items() if not name.startswith("initial.")})
        initial = {name: value for name, value in state.items() if name.startswith("initial.")}
        self.initial = {name.removeprefix("initial."): value for name, value in initial.items()}
