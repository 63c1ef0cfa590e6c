"""Ending a task early, by its held-out images."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hnetcl.methods import Run, active_only
from hnetcl.modes import evaluation_mode
from hnetcl.modules import main_logits
from hnetcl.tasks import batch_sizes, loss_of


class EarlyStopping:
    """Looks at the loss of held-out images after every epoch of a task, keeps the best state, and says when to give up.

        early = EarlyStopping(patience, every, tasks, batch_size)
        if early.due(step, steps):                              # an epoch has ended
            if early.look(run, step, learned): break            # and as many as `patience` have not been better
        learned = early.state                                   # goes in place of the last

    The loss is that of training, without smoothing and without what the method adds, of the model in evaluation; the mean over
    tasks where several are trained on.

    Args:
        patience: epochs in a row without a lower loss that end a task.
        every: steps of an epoch.
        tasks: whose images.
        batch_size: images in a step of the evaluation.

    Attributes:
        best: the lowest loss so far; it was found after `step` steps.
        state: what was learned then; empty where no loss was finite.

    Source: Prechelt 1998, Early stopping - but when?
    """

    def __init__(self, patience: int, every: int, tasks: Sequence[int], batch_size: int) -> None:
        self.patience, self.every, self.tasks, self.batch_size = patience, every, tasks, batch_size
        self.best, self.step, self.waited = math.inf, 0, 0
        self.state: dict[str, Any] = {}

    def due(self, done: int, steps: int) -> bool:
        """Whether an epoch, or the task, has ended with the step that was done last, of so many."""
        return done % self.every == 0 or done == steps

    def look(self, run: Run, done: int, learned: dict[str, Any]) -> bool:
        """Keeps what was learned where the loss is the lowest so far. Whether the task ends now, after so many steps."""
        loss = sum(held_out_loss(run, task, self.batch_size) for task in self.tasks) / len(self.tasks)
        self.waited += 1
        if loss < self.best:
            self.best, self.step, self.waited = loss, done, 0
            self.state = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, learned)
        return self.waited >= self.patience

    def values(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"best": self.best, "step": self.step, "waited": self.waited, "state": self.state}

    def load(self, values: dict[str, Any]) -> None:
        """The inverse of `values`."""
        self.best, self.step, self.waited = values["best"], values["step"], values["waited"]
        self.state = values["state"]


@torch.no_grad()
def held_out_loss(run: Run, number: int, batch_size: int) -> float:
    """The mean loss of a task's held-out images, in evaluation."""
    task, sequence, model = run.sequence[number], run.sequence, run.model
    total, sizes = torch.zeros((), dtype=torch.float64, device=task.val.labels.device), batch_sizes(len(task.val), batch_size)
    with evaluation_mode(model):
        for images, labels in zip(task.val.images.split(sizes), task.val.labels.split(sizes), strict=True):
            y = labels + sequence.first_output(number) if sequence.first_output(number) else labels
            logits = main_logits(model(task.preprocess(images), number))
            active = sequence.active(run.active_classes, run.task, y, number)
            total += len(y) * loss_of(sequence.loss, active_only(logits, active), y).double()
    return float(total) / len(task.val)
