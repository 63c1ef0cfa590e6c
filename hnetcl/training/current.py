"""The task in training."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from hnetcl.methods import Method, Run
from hnetcl.tasks import Batches
from hnetcl.training.engine import random_states, set_random_states


class CurrentTask:
    """The task that is being trained, with all that its next step starts from.

    Args:
        run: as the method sees it.
        method: has started the task.
        schedule: of the run's optimizer.
        batches: of the tasks so far.
        steps: that the task takes.

    Attributes:
        step: steps that are done.
        seconds: that they took.
    """

    def __init__(self, run: Run, method: Method, schedule: LRScheduler, batches: Sequence[Batches], steps: int) -> None:
        self.run, self.method, self.schedule, self.batches, self.steps = run, method, schedule, batches, steps
        self.step, self.seconds = 0, 0.0

    def draw(self, of: int | None = None) -> tuple[Tensor, Tensor]:
        """What gives the method its batches: the next one of the current task, or of an old one (see `methods.Draw`).

        Raises:
            ValueError: the method asks for an old one's, and does not say that it sees old data.
        """
        task = self.run.task
        if of not in (None, task) and not self.method.sees_old_data:
            name = type(self.method).__name__
            raise ValueError(f"{name} asks for data of task {of} in task {task}, but does not say `sees_old_data = True`")
        return self.batches[task if of is None else of].draw()

    def state(self) -> dict[str, Any]:
        """What steps have changed since the task was started: tensors and plain values."""
        run = self.run
        return {
            "step": self.step,
            "seconds": self.seconds,
            "model": run.model.saved_tensors(),
            "optimizer": run.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "method": self.method.task_state(),
            "batches": [(each.order, each.position) for each in self.batches],
            "generator": run.generator.get_state(),
            "random": random_states(run.generator.device),
        }

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, for a task that has just been started as it was then."""
        run, device = self.run, self.run.generator.device
        run.model.load_tensors(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.method.load_task_state(run, {name: value.to(device) for name, value in state["method"].items()})
        for each, (order, position) in zip(self.batches, state["batches"], strict=True):
            each.order, each.position = order.to(device), position
        run.generator.set_state(state["generator"])
        set_random_states(state["random"], device)
        self.step, self.seconds = state["step"], state["seconds"]
