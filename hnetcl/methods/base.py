"""The part of training that methods differ in."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from hnetcl.hnets import BaseHyperNetwork as HyperNetwork
from hnetcl.model import HyperModel
from hnetcl.tasks import Task

Rows = Callable[[HyperNetwork, list[Tensor], list[Tensor]], Tensor]
"""A function of a hypernetwork, tensors [B, ...] and tensors that are the same for all B tasks -> [B, ...], task by task."""

Write = Callable[[HyperNetwork, Tensor, list[Tensor], list[Tensor]], tuple[dict[str, Tensor], Tensor]]
"""Of a hypernetwork, a task (0-dim), tensors [B, ...], and tensors that are the same for all B tasks: parameters, rows [B]."""


class Beside(NamedTuple):
    """A penalty that is computed in the forward that writes the current task's parameters.

    Args:
        write: of the hypernetwork, the current task, `by_task` and `common`. It is compiled once for all B.
        by_task, common: tensors.
        total: rows -> penalty, 0-dim.
    """

    write: Write
    by_task: list[Tensor]
    common: list[Tensor]
    total: Callable[[Tensor], Tensor]


class Method(ABC):
    """Called by the trainer: `start_task`; `batch_task`, and `beside` or `penalty`, at every step of the task; `end_task`."""

    @abstractmethod
    def start_task(self, hnet: HyperNetwork, task: int, optimizer: Optimizer, generator: torch.Generator) -> None:
        """Keeps what is needed of the state before task number `task` is trained.

        Nothing but `state` survives between tasks, so that a resumed run starts a task as an uninterrupted one does.

        Args:
            hnet: as the tasks before have left it.
            task: the number.
            optimizer: what will train the task.
            generator: on the hypernetwork's device, for what a step draws.
        """

    @abstractmethod
    def batch_task(self, task: int, step: int) -> int:
        """The task whose batch the step trains on, while `task` is the current one."""

    @property
    def single_row(self) -> bool:
        """Whether B is 1 at every step of every task, so that what is compiled may depend on it."""
        return False

    def compile(self, compiler: Callable[[Rows], Rows]) -> None:  # noqa: B027, for not every method has what to compile
        """Passes what `penalty` computes at length through `compiler`; here there is nothing. What `beside` returns is compiled
        by who calls that.

        Called before the first task. What a compiled function returns may be overwritten after the step.
        """

    def beside(self, hnet: HyperNetwork) -> Beside | None:
        """The step's penalty, if it can be computed beside the task's parameters, which is less work; None for `penalty`."""
        return None

    @abstractmethod
    def penalty(self, hnet: HyperNetwork) -> Tensor | None:
        """What is added to the loss, a 0-dim tensor; None for nothing. The loss's gradients are in place."""

    def end_task(  # noqa: B027 most methods learn nothing
        self, model: HyperModel, task: int, data: Task, generator: torch.Generator
    ) -> None:
        """Learns what it must about task number `task`, which has just been trained and whose data are still at hand."""

    def state(self) -> dict[str, Tensor]:
        """What it has learned about the tasks so far; a checkpoint keeps it."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """The inverse of `state`; the tensors may lie on another device."""
