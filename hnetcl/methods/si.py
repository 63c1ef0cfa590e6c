"""Synaptic intelligence."""

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from hnetcl.methods.base import Inputs, Losses, Run
from hnetcl.methods.quadratic import QuadraticPenalty
from hnetcl.registry import register


@register("method", "si")
class SI(QuadraticPenalty):
    r"""Adds, with theta* the parameters after the newest task,

    .. math:: c \sum_p \Omega_p (\theta_p - \theta^*_p)^2, \quad
        \Omega_p = \sum_t \frac{\max(0, \omega_{tp})}{\Delta_{tp}^2 + \xi}

    omega_t is the path integral of task t: minus the gradient of the task's loss times the parameter's move, summed over the
    steps; Delta_t is the way from the task's start to its end.

    Args:
        c: strength.
        xi: damping of the denominator.

    The coefficient of Hsu et al. 2018 is c, with xi = 0.1; they keep path integrals below 0, which here count as 0.

    Source: Zenke et al. 2017 (arXiv:1703.04200), equations 4 and 5.
    """

    def __init__(self, *, c: Annotated[float, Ge(0)] = 1.0, xi: Annotated[float, Gt(0)] = 0.1) -> None:
        super().__init__(c)
        self.xi = xi
        self.start: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}
        self.gradient: dict[str, Tensor] = {}
        self.integral: dict[str, Tensor] = {}

    def start_task(self, run: Run) -> None:
        super().start_task(run)
        self.start = {name: p.detach().clone() for name, p in run.model.common_parameters().items()}
        self.integral = {name: torch.zeros_like(value) for name, value in self.start.items()}

    @torch.no_grad()
    def after_backward(self, run: Run, inputs: Inputs) -> dict[str, Tensor]:
        """Keeps the gradient of the task's loss before the penalty's is added."""
        parameters = run.model.common_parameters()
        self.gradient = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        self.before = {name: parameters[name].detach().clone() for name in self.gradient}
        return super().after_backward(run, inputs)

    @torch.no_grad()
    def after_step(self, run: Run, inputs: Inputs, losses: Losses) -> None:
        parameters = run.model.common_parameters()
        for name, gradient in self.gradient.items():
            self.integral[name].addcmul_(gradient, parameters[name] - self.before[name], value=-1)

    def task_state(self) -> dict[str, Tensor]:
        return dict(self.integral)

    def load_task_state(self, run: Run, state: Mapping[str, Tensor]) -> None:
        self.integral = dict(state)

    @torch.no_grad()
    def end_task(self, run: Run) -> None:
        moves = {name: (p - self.start[name]).square() for name, p in run.model.common_parameters().items()}
        self.gather(run, {name: self.integral[name].clamp(min=0) / (move + self.xi) for name, move in moves.items()})
        self.start, self.before, self.gradient, self.integral = {}, {}, {}, {}
