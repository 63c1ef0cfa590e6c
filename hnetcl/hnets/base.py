"""What every hypernetwork is: a map from tasks to named parameters."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from hnetcl.errors import ArgumentError
from hnetcl.hnets.growth import replace_parameter

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Record:
    """What a hypernetwork wrote for B tasks, in the form in which it compares best.

    Args:
        by_task: tensors [B, ...].
        common: tensors that are the same for all tasks.
    """

    by_task: list[Tensor]
    common: list[Tensor]

    def of(self, places: Tensor) -> "Record":
        """The record of the tasks at these places, [K] of B."""
        return Record([value.index_select(0, places.to(value.device)) for value in self.by_task], self.common)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Record":
        """The same elsewhere, what is kept for each task in another dtype."""
        return Record([value.to(device, dtype) for value in self.by_task], [value.to(device) for value in self.common])


class HyperNetwork(nn.Module, ABC):
    """Writes all parameters of a main network for a task.

        params = hnet(2)                            # dict: name -> tensor of the parameter's shape
        many = hnet(torch.tensor([0, 2, 4]))        # the same with a leading axis of 3, in one forward

    Args:
        shapes: name -> shape of the parameters to write.
        num_tasks: tasks known from the start; `add_task` opens more.
        initial: the main network's own initial values, name -> tensor, for all names of `shapes`. None stands for a network
            whose matrices start at N(0, 1 / fan_in) and whose vectors start at zero. `initial_parameters` makes them.

    What is written is real: a complex parameter [*S] is written as [*S, 2], of any dtype in float32 (where `initial` is float64
    in that). `HyperModel` makes the parameter's own dtype of it.

    Attributes:
        note: what a user should know of a size that was chosen here; empty where there is nothing.

    Raises:
        ArgumentError: no shapes, no numbers in them, no tasks, or `initial` does not fit `shapes`.
    """

    note = ""

    def __init__(self, shapes: Shapes, num_tasks: int, initial: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        if not self.num_generated:
            raise ArgumentError("shapes", dict(shapes), "needs at least one number to write")
        if num_tasks < 1:
            raise ArgumentError("num_tasks", num_tasks, "must be at least 1")
        if initial is not None and any(value.is_complex() for value in initial.values()):
            raise ArgumentError("initial", sorted(initial), "must be real: torch.view_as_real of complex values")
        if initial is not None and self.shapes != {name: value.shape for name, value in initial.items()}:
            raise ArgumentError("initial", sorted(initial), f"must have the names and shapes of {dict(self.shapes)}")
        self.num_tasks = num_tasks

    @property
    def num_generated(self) -> int:
        """P, the numbers written for a task."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def num_trainable(self) -> int:
        """Trainable numbers of the hypernetwork, those of all tasks included."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def compression(self) -> float:
        """Trainable numbers per number written for one task."""
        return self.num_trainable / self.num_generated

    def forward(self, task: SupportsIndex | Tensor) -> dict[str, Tensor]:
        """The parameters of a task (an int, numpy's too, or a 0-dim tensor), or of a vector of B tasks, then with a leading
        axis of B.

        Raises:
            ValueError: there is no such task (ints only: a tensor is not read on the host).
            TypeError: not an integer.
        """
        if not isinstance(task, Tensor):
            task = index(task)
            if not 0 <= task < self.num_tasks:
                raise ValueError(f"task={task}: there are tasks 0 to {self.num_tasks - 1}")
            task = torch.full((), task, device=next(self.parameters()).device)  # filled there: a copy would wait for the GPU
        return self.shaped(self.written(task.reshape(-1)), (task.numel(),) if task.ndim else ())

    def shaped(self, written: Mapping[str, Tensor], lead: Sequence[int] = ()) -> dict[str, Tensor]:
        """What is written as parameters, in the order of `shapes`: [B, n] each -> [*lead, *shape] each."""
        return {name: written[name].reshape((*lead, *shape)) for name, shape in self.shapes.items()}

    def flat(self, tasks: Tensor) -> Tensor:
        """The parameters of B tasks in one row each: [B] -> [B, P], in the order of `shapes`."""
        written = self.written(tasks)
        return torch.cat([written[name] for name in self.shapes], 1)

    def with_flat(self, task: Tensor, tasks: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """`forward(task)`, of a 0-dim task, and `flat(tasks)`, in one forward."""
        written = self.written(torch.cat([task.reshape(1), tasks]))
        split = {name: value.split([1, len(tasks)]) for name, value in written.items()}  # gradients of slices would be padded
        flat = torch.cat([split[name][1] for name in self.shapes], 1)
        return self.shaped({name: own for name, (own, _) in split.items()}), flat

    @torch.no_grad()
    def record(self, tasks: Tensor, at_once: int) -> Record:
        """What is written for B tasks, to be compared with later.

        Args:
            tasks: [B].
            at_once: of how many of them a comparison will be.
        """
        return Record([self.flat(tasks)], [])

    def squared_distance(self, tasks: Tensor, before: Record) -> Tensor:
        """|w_t - w'_t|^2 for each of B tasks between what is written now, w, and what was, w': [B] -> [B].

        Args:
            tasks: [B].
            before: their record, made by this hypernetwork or a copy of it.
        """
        return _squared_distance(self.flat(tasks), before)

    def with_squared_distance(self, task: Tensor, tasks: Tensor, before: Record) -> tuple[dict[str, Tensor], Tensor]:
        """`forward(task)`, of a 0-dim task, and `squared_distance(tasks, before)`, in one forward."""
        params, flat = self.with_flat(task, tasks)
        return params, _squared_distance(flat, before)

    @abstractmethod
    def written(self, tasks: Tensor) -> dict[str, Tensor]:
        """The parameters of B tasks, by name, each flat: [B] -> [B, n]."""

    def add_task(self, optimizer: Optimizer | None = None) -> None:
        """Opens one more task; what was learned stays.

        Args:
            optimizer: of this hypernetwork, if there is one already: it goes on with the grown parameters, its state kept.
        """
        for name, fresh in self.fresh_entries().items():
            old = self.get_parameter(name)
            new = nn.Parameter(torch.cat([old.detach(), fresh]), old.requires_grad)
            setattr(self, name, new)
            if optimizer is not None:
                replace_parameter(optimizer, old, new)
        self.num_tasks += 1

    @abstractmethod
    def fresh_entries(self) -> dict[str, Tensor]:
        """What a new task starts with, [1, ...] for each of `task_parameters`, by its name here."""

    @abstractmethod
    def task_parameters(self) -> list[nn.Parameter]:
        """Those of the parameters that have an entry per task; all others are shared by the tasks."""

    @property
    @abstractmethod
    def embeddings(self) -> Tensor | None:
        """Task embeddings [T, E], or None where tasks have none."""


def _squared_distance(flat: Tensor, before: Record) -> Tensor:
    return F.mse_loss(flat, before.by_task[0], reduction="none").sum(1)  # one pass each way over all numbers


def initial_values(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Values for a network of which only the shapes are known: N(0, 1 / fan_in) for matrices, zeros for vectors."""
    return {
        name: torch.randn(shape) / math.sqrt(shape[1:].numel()) if len(shape) > 1 else torch.zeros(shape)
        for name, shape in shapes.items()
    }
