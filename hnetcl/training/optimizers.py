"""Optimizers and learning-rate schedules by name; every task starts with a fresh one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from hnetcl.bn import row_parameters
from hnetcl.errors import ArgumentError, one_of
from hnetcl.model import HyperModel

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {  # fused where torch has that on every device
    "adagrad": torch.optim.Adagrad,
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "rmsprop": torch.optim.RMSprop,
    "sgd": partial(torch.optim.SGD, fused=True),
}
ROW_SPEED = 10.0  # learnable statistics follow the network, so they must be faster than it is
SCHEDULES: dict[str, Callable[[float], float]] = {  # share of the task done -> factor of the learning rate
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


@dataclass(frozen=True)
class OptimizerFactory:
    """Makes a task's optimizer and schedule.

    Args:
        name: one of `OPTIMIZERS`.
        lr: learning rate at a task's start.
        schedule: one of `SCHEDULES`, run through once per task.
        weight_decay: of the parameters that all tasks share; a task's own entries decay never, or old tasks would fade.
        options: further arguments of the torch optimizer.

    Raises:
        ArgumentError: an unknown name, a learning rate that is not positive, a negative weight decay, an option that the torch
            optimizer has not, Nesterov's momentum without momentum.
    """

    name: str
    lr: float
    schedule: str
    weight_decay: float
    options: dict[str, Any]

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise one_of("name", self.name, OPTIMIZERS)
        if self.schedule not in SCHEDULES:
            raise one_of("schedule", self.schedule, SCHEDULES)
        if not 0 < self.lr < math.inf:
            raise ArgumentError("lr", self.lr, "must be positive and finite")
        if not 0 <= self.weight_decay < math.inf:
            raise ArgumentError("weight_decay", self.weight_decay, "must be finite and not negative")
        arguments = signature(OPTIMIZERS[self.name]).parameters
        for key in self.options:
            if key not in arguments:
                raise one_of("options", key, arguments)
        if self.options.get("nesterov") and not self.options.get("momentum"):
            raise ArgumentError("nesterov", True, "needs a momentum above 0")

    def make(self, model: HyperModel, steps: int) -> tuple[Optimizer, LRScheduler]:
        """A fresh optimizer over all that learns in `model`, and its schedule for a task of that many steps."""
        rows = list(row_parameters(model.net).values())
        own = model.hnet.task_parameters()
        shared = [p for p in model.hnet.parameters() if not any(p is q for q in own)] + model.shared_parameters()
        groups: list[dict[str, Any]] = [
            {"params": shared, "weight_decay": self.weight_decay},
            {"params": own, "weight_decay": 0.0},
        ]
        if rows:
            groups.append({"params": rows, "weight_decay": 0.0, "lr": ROW_SPEED * self.lr})
        optimizer = OPTIMIZERS[self.name](groups, lr=self.lr, **self.options)
        return optimizer, LambdaLR(optimizer, lambda step: SCHEDULES[self.schedule](step / steps))
