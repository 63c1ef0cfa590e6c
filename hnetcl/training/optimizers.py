"""Optimizers and learning-rate schedules; every task starts with a fresh one."""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from hnetcl.bn import norm_layers, row_parameters
from hnetcl.errors import ArgumentError
from hnetcl.model import HyperModel
from hnetcl.registry import register

Rate = Annotated[float, Gt(0)]
Positive = Annotated[float, Ge(0)]
Warmup = Annotated[float, Ge(0), Lt(1)] | None
Share = Annotated[float, Ge(0), Le(1)]
Schedule = Literal["constant", "cosine"]
SCHEDULES: dict[str, Callable[[float], float]] = {  # share of the task done -> factor of the learning rate
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


class OptimizerFactory:
    """Makes a task's optimizer and schedule.

        @hnetcl.register("optimizer", "adamax")
        def adamax(*, lr: float = 0.002, beta: float = 0.9) -> OptimizerFactory:
            return OptimizerFactory(torch.optim.Adamax, lr=lr, betas=(beta, 0.999))

    Args:
        kind: of groups of parameters, `lr` and `options` makes an optimizer. Fused ones are fast, and wait for no GPU where
            values are watched that are not finite.
        lr: learning rate at a task's start.
        weight_decay: of the parameters that all tasks share; a task's own entries never decay, or old tasks would fade.
        schedule: "constant" or "cosine" (to zero), run through once per task.
        warmup: the share of a task's steps in which the rate rises from zero to what the schedule says. None: a tenth where a
            hypernetwork writes a network without batch norm, whose units the first long steps can switch off for good; else 0.
        statistics_lr: the learning rate of learnable statistics as a multiple of `lr`: they follow the network, so they must be
            faster than it is.
        options: further arguments of `kind`.
    """

    def __init__(
        self,
        kind: Callable[..., Optimizer],
        *,
        lr: float,
        weight_decay: float = 0.0,
        schedule: Schedule = "cosine",
        warmup: float | None = None,
        statistics_lr: float = 10.0,
        **options: Any,
    ) -> None:
        self.kind, self.lr, self.weight_decay, self.schedule = kind, lr, weight_decay, schedule
        self.warmup, self.statistics_lr, self.options = warmup, statistics_lr, options

    def make(self, model: HyperModel, steps: int) -> tuple[Optimizer, LRScheduler]:
        """A fresh optimizer over all that learns in `model`, and its schedule for a task of that many steps."""
        rows = list(row_parameters(model.net).values())
        own = [p for p in model.hnet.task_parameters() if p.numel()]
        shared = [p for p in model.hnet.parameters() if p.numel() and not any(p is q for q in own)] + model.shared_parameters()
        groups: list[dict[str, Any]] = [{"params": shared, "weight_decay": self.weight_decay}]
        if own:
            groups.append({"params": own, "weight_decay": 0.0})
        if rows:
            groups.append({"params": rows, "weight_decay": 0.0, "lr": self.statistics_lr * self.lr})
        optimizer = self.kind(groups, lr=self.lr, **self.options)
        rising = steps * (_default_warmup(model) if self.warmup is None else self.warmup)
        return optimizer, LambdaLR(optimizer, lambda k: SCHEDULES[self.schedule](k / steps) * min(1.0, (k + 1) / (rising + 1)))


def _default_warmup(model: HyperModel) -> float:
    """See `OptimizerFactory`."""
    return 0.1 if model.hnet.embeddings is not None and not norm_layers(model.net) else 0.0


@register("optimizer", "adam")
def adam(
    *,
    lr: Rate = 0.004,
    weight_decay: Positive = 0.0,
    schedule: Schedule = "cosine",
    warmup: Warmup = None,
    statistics_lr: Rate = 10.0,
) -> OptimizerFactory:
    """Adam; its weight decay is part of the gradient."""
    kind = partial(torch.optim.Adam, fused=True)
    return OptimizerFactory(
        kind, lr=lr, weight_decay=weight_decay, schedule=schedule, warmup=warmup, statistics_lr=statistics_lr
    )


@register("optimizer", "adamw")
def adamw(
    *,
    lr: Rate = 0.004,
    weight_decay: Positive = 0.01,
    schedule: Schedule = "cosine",
    warmup: Warmup = None,
    statistics_lr: Rate = 10.0,
) -> OptimizerFactory:
    """Adam with decoupled weight decay."""
    kind = partial(torch.optim.AdamW, fused=True)
    return OptimizerFactory(
        kind, lr=lr, weight_decay=weight_decay, schedule=schedule, warmup=warmup, statistics_lr=statistics_lr
    )


@register("optimizer", "sgd")
def sgd(
    *,
    lr: Rate = 0.1,
    weight_decay: Positive = 0.0,
    schedule: Schedule = "cosine",
    warmup: Warmup = None,
    statistics_lr: Rate = 10.0,
    momentum: Share = 0.0,
    nesterov: bool = False,
) -> OptimizerFactory:
    """Stochastic gradient descent.

    Raises:
        ArgumentError: Nesterov's momentum without momentum.
    """
    if nesterov and not momentum:
        raise ArgumentError("nesterov", nesterov, f"needs a momentum above 0 (momentum={momentum})")
    return OptimizerFactory(
        partial(torch.optim.SGD, fused=True),
        lr=lr,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        statistics_lr=statistics_lr,
        momentum=momentum,
        nesterov=nesterov,
    )


@register("optimizer", "rmsprop")
def rmsprop(
    *,
    lr: Rate = 0.01,
    weight_decay: Positive = 0.0,
    schedule: Schedule = "cosine",
    warmup: Warmup = None,
    statistics_lr: Rate = 10.0,
    alpha: Share = 0.99,
    momentum: Share = 0.0,
    centered: bool = False,
) -> OptimizerFactory:
    """RMSprop."""
    return OptimizerFactory(
        torch.optim.RMSprop,
        lr=lr,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        statistics_lr=statistics_lr,
        alpha=alpha,
        momentum=momentum,
        centered=centered,
    )


@register("optimizer", "adagrad")
def adagrad(
    *,
    lr: Rate = 0.01,
    weight_decay: Positive = 0.0,
    schedule: Schedule = "cosine",
    warmup: Warmup = None,
    statistics_lr: Rate = 10.0,
    lr_decay: Positive = 0.0,
    initial_accumulator_value: Positive = 0.0,
) -> OptimizerFactory:
    """Adagrad."""
    return OptimizerFactory(
        torch.optim.Adagrad,
        lr=lr,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        statistics_lr=statistics_lr,
        lr_decay=lr_decay,
        initial_accumulator_value=initial_accumulator_value,
    )
