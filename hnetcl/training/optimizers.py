"""Optimizers; every task starts with a fresh one. The arguments of each are those of `OptimizerFactory`, or its `options`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from hnetcl.bn import norm_layers, row_parameters
from hnetcl.errors import ArgumentError
from hnetcl.model import HyperModel
from hnetcl.registry import register
from hnetcl.training.decay import Decays, undecayed
from hnetcl.training.schedules import Factor, Milestones, Schedule, curve

Rate = Annotated[float, Gt(0)]
Positive = Annotated[float, Ge(0)]
Warmup = Annotated[float, Ge(0), Lt(1)] | None
Share = Annotated[float, Ge(0), Le(1)]


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
        decays: which of these: "all", or "weights", none of norm layers, no biases and no vectors, see `undecayed`.
        schedule, milestones, factor: see `curve`; run through once per task.
        warmup: the share of a task's steps in which the rate rises from zero to what the schedule says. None: a tenth where a
            hypernetwork writes a network without batch norm, whose units the first long steps can switch off for good; else 0.
        statistics_lr: the learning rate of learnable statistics as a multiple of `lr`: they follow the network, so they must be
            faster than it is.
        options: further arguments of `kind`.

    Raises:
        ArgumentError: what `curve` refuses, or `decays` where nothing does.
    """

    def __init__(
        self,
        kind: Callable[..., Optimizer],
        *,
        lr: float,
        weight_decay: float = 0.0,
        decays: Decays = "all",
        schedule: Schedule = "cosine",
        milestones: Sequence[float] | None = None,
        factor: float | None = None,
        warmup: float | None = None,
        statistics_lr: float = 10.0,
        **options: Any,
    ) -> None:
        if decays != "all" and not weight_decay:
            raise ArgumentError("decays", decays, f"goes unused with weight_decay={weight_decay:g}; allowed with it: all")
        self.curve = curve(schedule, milestones, factor)
        self.kind, self.lr, self.weight_decay, self.decays, self.schedule = kind, lr, weight_decay, decays, schedule
        self.milestones = None if milestones is None else tuple(milestones)
        self.factor, self.warmup, self.statistics_lr, self.options = factor, warmup, statistics_lr, options

    def make(self, model: HyperModel, steps: int) -> tuple[Optimizer, LRScheduler]:
        """A fresh optimizer over all that learns in `model`, and its schedule for a task of that many steps."""
        rows = list(row_parameters(model.net).values())
        own = [p for p in model.hnet.task_parameters() if p.numel()]
        shared = [p for p in model.hnet.parameters() if p.numel() and not any(p is q for q in own)] + model.shared_parameters()
        still = undecayed(model) if self.decays == "weights" else set()
        groups: list[dict[str, Any]] = [{"params": [p for p in shared if p not in still], "weight_decay": self.weight_decay}]
        if still:
            groups.append({"params": [p for p in shared if p in still], "weight_decay": 0.0})
        if own:
            groups.append({"params": own, "weight_decay": 0.0})
        if rows:
            groups.append({"params": rows, "weight_decay": 0.0, "lr": self.statistics_lr * self.lr})
        optimizer = self.kind(groups, lr=self.lr, **self.options)
        rising = steps * (_default_warmup(model) if self.warmup is None else self.warmup)
        return optimizer, LambdaLR(optimizer, lambda k: self.curve(k / steps) * min(1.0, (k + 1) / (rising + 1)))


def _default_warmup(model: HyperModel) -> float:
    """See `OptimizerFactory`."""
    return 0.1 if model.hnet.embeddings is not None and not norm_layers(model.net) else 0.0


@register("optimizer", "adam")
def adam(
    *,
    lr: Rate = 0.004,
    weight_decay: Positive = 0.0,
    decays: Decays = "all",
    schedule: Schedule = "cosine",
    milestones: Milestones = None,
    factor: Factor = None,
    warmup: Warmup = None,
    statistics_lr: Rate = 10.0,
) -> OptimizerFactory:
    """Adam; its weight decay is part of the gradient."""
    return OptimizerFactory(partial(torch.optim.Adam, fused=True), **locals())


@register("optimizer", "adamw")
def adamw(
    *,
    lr: Rate = 0.004,
    weight_decay: Positive = 0.01,
    decays: Decays = "all",
    schedule: Schedule = "cosine",
    milestones: Milestones = None,
    factor: Factor = None,
    warmup: Warmup = None,
    statistics_lr: Rate = 10.0,
) -> OptimizerFactory:
    """Adam with decoupled weight decay."""
    return OptimizerFactory(partial(torch.optim.AdamW, fused=True), **locals())


@register("optimizer", "sgd")
def sgd(
    *,
    lr: Rate = 0.1,
    weight_decay: Positive = 0.0,
    decays: Decays = "all",
    schedule: Schedule = "cosine",
    milestones: Milestones = None,
    factor: Factor = None,
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
    return OptimizerFactory(partial(torch.optim.SGD, fused=True), **locals())


@register("optimizer", "rmsprop")
def rmsprop(
    *,
    lr: Rate = 0.01,
    weight_decay: Positive = 0.0,
    decays: Decays = "all",
    schedule: Schedule = "cosine",
    milestones: Milestones = None,
    factor: Factor = None,
    warmup: Warmup = None,
    statistics_lr: Rate = 10.0,
    alpha: Share = 0.99,
    momentum: Share = 0.0,
    centered: bool = False,
) -> OptimizerFactory:
    """RMSprop."""
    return OptimizerFactory(torch.optim.RMSprop, **locals())


@register("optimizer", "adagrad")
def adagrad(
    *,
    lr: Rate = 0.01,
    weight_decay: Positive = 0.0,
    decays: Decays = "all",
    schedule: Schedule = "cosine",
    milestones: Milestones = None,
    factor: Factor = None,
    warmup: Warmup = None,
    statistics_lr: Rate = 10.0,
    lr_decay: Positive = 0.0,
    initial_accumulator_value: Positive = 0.0,
) -> OptimizerFactory:
    """Adagrad."""
    return OptimizerFactory(torch.optim.Adagrad, **locals())
