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

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Record:
    """What a hypernetwork generated for B tasks, in the form in which it compares best.

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
        """The same on another device, the tensors of each task in another dtype."""
        return Record([value.to(device, dtype) for value in self.by_task], [value.to(device) for value in self.common])


class BaseHyperNetwork(nn.Module, ABC):
    """Generates all parameters of a main network for a task.

        params = hnet(2)                            # dict: name -> tensor of the parameter's shape
        many = hnet(torch.tensor([0, 2, 4]))        # the same with a leading axis of 3, in one forward

    Args:
        shapes: name -> shape of the parameters to generate.
        num_tasks: tasks known from the start; `add_task` opens more.
        initial: the main network's own initial values, name -> tensor, for all names of `shapes`. None stands for a network
            whose matrices start at N(0, 1 / fan_in) and whose vectors start at zero. `initial_parameters` makes them.

    What is generated is real: a complex parameter [*S] is generated as [*S, 2], of any dtype in float32 (where `initial` is
    float64 in that). `HyperModel` makes the parameter's own dtype of it.

    Attributes:
        note: what a user should know of a size that was chosen here; empty where there is nothing.

    Raises:
        ArgumentError: no shapes, no values in them, no tasks, or `initial` does not fit `shapes`.
    """

    note = ""

    def __init__(self, shapes: Shapes, num_tasks: int, initial: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        if not self.num_generated:
            raise ArgumentError("shapes", dict(shapes), "needs at least one value to generate")
        if num_tasks < 1:
            raise ArgumentError("num_tasks", num_tasks, "must be at least 1")
        if initial is not None and any(value.is_complex() for value in initial.values()):
            raise ArgumentError("initial", sorted(initial), "must be real: torch.view_as_real of complex values")
        if initial is not None and self.shapes != {name: value.shape for name, value in initial.items()}:
            raise ArgumentError("initial", sorted(initial), f"must have the names and shapes of {dict(self.shapes)}")
        self.num_tasks = num_tasks

    @property
    def num_generated(self) -> int:
        """P, the values generated for a task."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def num_trainable(self) -> int:
        """Trainable values of the hypernetwork, those of all tasks included."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def compression(self) -> float:
        """Trainable values per value generated for one task."""
        return self.num_trainable / self.num_generated

    def forward(self, task: SupportsIndex | Tensor) -> dict[str, Tensor]:
        """The parameters of a task (an int, numpy's too, or a 0-dim tensor), or of a vector of B tasks, then with a leading
        axis of B.

        Raises:
            ValueError: there is no such task (ints only: a tensor is not read on the host).
            TypeError: not an integer.
        """
        self.require_task(task)
        if not isinstance(task, Tensor):
            task = torch.full((), index(task), device=next(self.parameters()).device)  # a copy would wait for the GPU
        return self.shaped(self.generate(task.reshape(-1)), (task.numel(),) if task.ndim else ())

    def require_task(self, task: SupportsIndex | Tensor) -> None:
        """Refuses a number that no task has.

        Raises:
            ValueError: there is no such task (ints only: a tensor is not read on the host).
            TypeError: not an integer.
        """
        if not isinstance(task, Tensor) and not 0 <= index(task) < self.num_tasks:
            raise ValueError(f"task={index(task)}: there are tasks 0 to {self.num_tasks - 1}")

    def shaped(self, generated: Mapping[str, Tensor], lead: Sequence[int] = ()) -> dict[str, Tensor]:
        """What was generated as parameters, in the order of `shapes`: [B, n] each -> [*lead, *shape] each."""
        return {name: generated[name].reshape((*lead, *shape)) for name, shape in self.shapes.items()}

    def flat(self, tasks: Tensor) -> Tensor:
        """The parameters of each of B tasks end to end: [B] -> [B, P], in the order of `shapes`."""
        generated = self.generate(tasks)
        return torch.cat([generated[name] for name in self.shapes], 1)

    def with_flat(self, task: Tensor, tasks: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """`forward(task)`, of a 0-dim task, and `flat(tasks)`, in one forward."""
        generated = self.generate(torch.cat([task.reshape(1), tasks]))
        split = {name: value.split([1, len(tasks)]) for name, value in generated.items()}  # gradients of slices would be padded
        flat = torch.cat([split[name][1] for name in self.shapes], 1)
        return self.shaped({name: own for name, (own, _) in split.items()}), flat

    @torch.no_grad()
    def record(self, tasks: Tensor, at_once: int) -> Record:
        """What is generated for B tasks, to be compared with later.

        Args:
            tasks: [B].
            at_once: of how many of them a comparison will be.
        """
        return Record([self.flat(tasks)], [])

    def squared_distance(self, tasks: Tensor, before: Record) -> Tensor:
        """|w_t - w'_t|^2 for each of B tasks between what is generated now, w, and what was, w': [B] -> [B].

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
    def generate(self, tasks: Tensor) -> dict[str, Tensor]:
        """The parameters of B tasks, by name, each flat: [B] -> [B, n]."""

    def add_task(self, optimizer: Optimizer | None = None) -> None:
        """Opens one more task; what was learned stays.

        Args:
            optimizer: of this hypernetwork, if there is one already: it goes on with the grown parameters and all its state.
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
    return F.mse_loss(flat, before.by_task[0], reduction="none").sum(1)  # one pass each way over all values


def default_values(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Values for a network of which only the shapes are known: N(0, 1 / fan_in) for matrices, zeros for vectors."""
    return {
        name: torch.randn(shape) / math.sqrt(shape[1:].numel()) if len(shape) > 1 else torch.zeros(shape)
        for name, shape in shapes.items()
    }


def replace_parameter(optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter) -> None:
    """Has an optimizer go on with `new`, which holds the entries of `old` and fresh ones behind them.

    State of the parameter's shape (moments, momentum) grows by the value at which the optimizer starts it: zeros, or Adagrad's
    `initial_accumulator_value`. All other state, as Adam's count of steps, stays. An optimizer that does not hold `old` is
    left as it is.

    Args:
        optimizer: any of torch's that hold their state by parameter.
        old: [T, ...].
        new: [T + n, ...].
    """
    for group in optimizer.param_groups:
        if not any(each is old for each in group["params"]):
            continue
        group["params"] = [new if each is old else each for each in group["params"]]
        start = group.get("initial_accumulator_value", 0.0)
        state = optimizer.state.pop(old, {})
        if state:
            optimizer.state[new] = {key: _grown(value, old, new, start) for key, value in state.items()}


def _grown(value: object, old: Tensor, new: Tensor, start: float) -> object:
    if not isinstance(value, Tensor) or value.shape != old.shape:
        return value
    return torch.cat([value, value.new_full((len(new) - len(old), *old.shape[1:]), start)])
