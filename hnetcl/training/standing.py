"""How far a training has come."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hnetcl.model import HyperModel
from hnetcl.training.observer import TaskEnd


@dataclass
class Standing:
    """How far a training has come, and what was found so far.

    Args:
        matrix: R [T, T] in float64, NaN where nothing was evaluated.
        untrained, known, aware: [T], as in `Result`.
        done: tasks that were trained, evaluated and told.
        trained: tasks whose training has ended: `done`, or one more.
        distances, misfits: as in `TaskEnd`.
        seconds: training time of the tasks that are done; `seconds_of_task` that of the newest.
        steps: training steps of these tasks.
        spared: steps that the newest did not take, for it ended early.
        optimizer: what the optimizer has gathered in them, where the next task goes on with it.
    """

    matrix: Tensor
    untrained: Tensor
    known: Tensor
    aware: Tensor
    done: int = 0
    trained: int = 0
    distances: dict[str, Tensor] = field(default_factory=dict)
    misfits: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    seconds_of_task: float = 0.0
    steps: int = 0
    spared: int = 0
    optimizer: dict[int, Any] = field(default_factory=dict)

    @classmethod
    def fresh(cls, tasks: int) -> "Standing":
        """Of a training of so many tasks that has not begun."""
        nothing = torch.full((tasks,), torch.nan, dtype=torch.float64)
        return cls(nothing.repeat(tasks, 1), nothing, nothing.clone(), nothing.clone())

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return dict(vars(self))

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`.

        Raises:
            ValueError: these are no such values.
        """
        tasks = len(self.matrix)
        state = {"spared": 0, **state}  # older checkpoints are of tasks that took all steps
        for name, now in self.state().items():
            value = state[name]
            if isinstance(now, Tensor) and (now.shape != value.shape or now.dtype != value.dtype):
                raise ValueError(f"{name} has shape {tuple(value.shape)}")
            setattr(self, name, type(now)(value) if not isinstance(now, Tensor) else value)
        if not 0 <= self.done <= self.trained <= min(self.done + 1, tasks):
            raise ValueError(f"{self.done} and {self.trained} of {tasks} tasks are done")

    def end(self, model: HyperModel, val_accuracy: float | None = None) -> TaskEnd:
        """What is known at the end of the newest task."""
        embeddings = model.hnet.embeddings
        return TaskEnd(
            self.done - 1,
            val_accuracy,
            self.matrix.clone(),
            self.untrained.clone(),
            None if embeddings is None else embeddings.detach().cpu().clone(),
            self.seconds_of_task,
            self.distances,
            {name: values.clone() for name, values in self.misfits.items()},
        )
