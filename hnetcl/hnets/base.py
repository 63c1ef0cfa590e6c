"""What every hypernetwork is: a map from tasks to named parameters."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hnetcl.errors import ArgumentError

Shapes = Mapping[str, Sequence[int]]


class HyperNetwork(nn.Module, ABC):
    """Writes all parameters of a main network for a task.

        params = hnet(2)                            # dict: name -> tensor of the parameter's shape
        many = hnet(torch.tensor([0, 2, 4]))        # the same with a leading axis of 3, in one forward

    Args:
        shapes: name -> shape of the parameters to write.
        num_tasks: tasks known from the start; `add_task` opens more.
        initial: the main network's own initial values, name -> tensor, for all names of `shapes`. None stands for a network
            whose matrices start at N(0, 1 / fan_in) and whose vectors start at zero.

    Raises:
        ArgumentError: no shapes, no tasks, or `initial` does not fit `shapes`.
    """

    def __init__(self, shapes: Shapes, num_tasks: int, initial: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        if not shapes:
            raise ArgumentError("shapes", dict(shapes), "needs at least one parameter to write")
        if num_tasks < 1:
            raise ArgumentError("num_tasks", num_tasks, "must be at least 1")
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
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

    def forward(self, task: int | Tensor) -> dict[str, Tensor]:
        """The parameters of a task (an int or a 0-dim tensor), or of a vector of B tasks, then with a leading axis of B.

        Raises:
            ValueError: there is no such task (ints only: a tensor is not read on the host).
        """
        if isinstance(task, int):
            if not 0 <= task < self.num_tasks:
                raise ValueError(f"task={task}: there are tasks 0 to {self.num_tasks - 1}")
            task = torch.full((), task, device=next(self.parameters()).device)  # filled there: a copy would wait for the GPU
        flat = self.flat(task.reshape(-1))
        return self.by_name(flat if task.ndim else flat[0])

    @abstractmethod
    def flat(self, tasks: Tensor) -> Tensor:
        """The parameters of B tasks in one row each: [B] -> [B, P], in the order of `shapes`."""

    @abstractmethod
    def add_task(self) -> None:
        """Opens one more task; what was learned stays."""

    @abstractmethod
    def task_parameters(self) -> list[nn.Parameter]:
        """Those of the parameters that have an entry per task; all others are shared by the tasks."""

    @property
    @abstractmethod
    def embeddings(self) -> Tensor | None:
        """Task embeddings [T, E], or None where tasks have none."""

    def by_name(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of [..., P] as named parameters."""
        pieces = flat.split([shape.numel() for shape in self.shapes.values()], -1)
        return {
            name: piece.reshape(*flat.shape[:-1], *shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }


def initial_values(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Values for a network of which only the shapes are known: N(0, 1 / fan_in) for matrices, zeros for vectors."""
    return {
        name: torch.randn(shape) / math.sqrt(shape[1:].numel()) if len(shape) > 1 else torch.zeros(shape)
        for name, shape in shapes.items()
    }
