"""The task in training."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from hnetcl.methods import Method, Run
from hnetcl.tasks import Batches
from hnetcl.training.early_stopping import EarlyStopping
from hnetcl.training.engine import random_states, set_random_states

logger = logging.getLogger("hnetcl")


class CurrentTask:
    """The task that is being trained, with all that its next step starts from.

    Args:
        run: as the method sees it.
        method: has started the task.
        schedule: of the run's optimizer.
        batches: of the tasks so far.
        steps: that the task takes, at most.
        early: what may end it before; None: nothing.

    Attributes:
        step: steps that are done.
        seconds: that they took.
    """

    def __init__(
        self,
        run: Run,
        method: Method,
        schedule: LRScheduler,
        batches: Sequence[Batches],
        steps: int,
        early: EarlyStopping | None = None,
    ) -> None:
        self.run, self.method, self.schedule, self.batches, self.steps = run, method, schedule, batches, steps
        self.step, self.seconds, self.early = 0, 0.0, early

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

    def ends_epoch(self) -> bool:
        """Whether the step that was done last has ended an epoch that early stopping looks at."""
        return self.early is not None and self.early.due(self.step, self.steps)

    def gives_up(self) -> bool:
        """Looks at the held-out images at an epoch's end. Whether the task ends with it."""
        return self.early is not None and self.early.look(self.run, self.step, self.learned())

    def take_best(self) -> None:
        """Puts the best state in place, where early stopping has kept one."""
        if self.early is None or not self.early.state:
            return
        self.load_learned(self.early.state)
        found = f"the loss of held-out images was lowest after step {self.early.step}, {self.early.best:.4g}"
        logger.info(f"task {self.run.task}: {found}; trained for {self.step} of {self.steps} steps")

    def learned(self) -> dict[str, Any]:
        """What steps have made of the model, the optimizer and the method since the task was started."""
        model, optimizer = self.run.model, self.run.optimizer
        return {
            "model": model.saved_tensors(),
            "optimizer": optimizer.state_dict(),
            "method": self.method.task_state(),
        }

    def load_learned(self, state: dict[str, Any]) -> None:
        """The inverse of `learned`."""
        run, device = self.run, self.run.generator.device
        run.model.load_tensors(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        self.method.load_task_state(run, {name: value.to(device) for name, value in state["method"].items()})

    def state(self) -> dict[str, Any]:
        """What steps have changed since the task was started: tensors and plain values."""
        run = self.run
        return {
            "step": self.step,
            "seconds": self.seconds,
            **self.learned(),
            "schedule": self.schedule.state_dict(),
            **({} if self.early is None else {"early": self.early.values()}),
            "batches": [(each.order, each.position) for each in self.batches],
            "generator": run.generator.get_state(),
            "random": random_states(run.generator.device),
        }

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, for a task that has just been started as it was then."""
        run, device = self.run, self.run.generator.device
        self.load_learned(state)
        self.schedule.load_state_dict(state["schedule"])
        if self.early is not None:
            self.early.load(state["early"])
        for each, (order, position) in zip(self.batches, state["batches"], strict=True):
            each.order, each.position = order.to(device), position
        run.generator.set_state(state["generator"])
        set_random_states(state["random"], device)
        self.step, self.seconds = state["step"], state["seconds"]
