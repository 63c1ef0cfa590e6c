"""The part of training that methods differ in."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from hnetcl.hnets import HyperNetwork
from hnetcl.model import HyperModel
from hnetcl.tasks import Task

Rows = Callable[[HyperNetwork, list[Tensor], list[Tensor]], Tensor]
"""A function of a hypernetwork, tensors [B, ...] and tensors that are the same for all B tasks -> [B, ...], task by task."""


class Method(ABC):
    """Called by the trainer: `start_task`, then `batch_task` and `penalty` at every step of the task, then `end_task`."""

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

    def compile(self, compiler: Callable[[Rows], Rows]) -> None:  # noqa: B027, for not every method has what to compile
        """Passes what `penalty` computes at length through `compiler`; here there is nothing.

        Called before the first task. What a compiled function returns may be overwritten after the step.
        """

    @property
    def wants_gradients(self) -> bool:
        """Whether the loss's gradients must be in place when `penalty` is called."""
        return False

    @abstractmethod
    def penalty(self, hnet: HyperNetwork) -> Tensor | None:
        """What is added to the loss, a 0-dim tensor; None for nothing."""

    def end_task(  # noqa: B027 most methods learn nothing
        self, model: HyperModel, task: int, data: Task, generator: torch.Generator
    ) -> None:
        """Learns what it must about task number `task`, which has just been trained and whose data are still at hand."""

    def state(self) -> dict[str, Tensor]:
        """What it has learned about the tasks so far; a checkpoint keeps it."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """The inverse of `state`; the tensors may lie on another device."""
