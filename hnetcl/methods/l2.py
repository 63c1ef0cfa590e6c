"""Holding all parameters alike."""

from typing import Annotated

import torch
from annotated_types import Ge

from hnetcl.methods.base import Run
from hnetcl.methods.quadratic import QuadraticPenalty
from hnetcl.registry import register


@register("method", "l2")
class L2(QuadraticPenalty):
    r"""Adds, with theta* the parameters after the newest task,

    .. math:: \lambda \sum_p (\theta_p - \theta^*_p)^2

    Args:
        lambda_: strength.

    Source: Kirkpatrick et al. 2017 (arXiv:1612.00796), the baseline of figure 2; Hsu et al. 2018 (arXiv:1810.12488), whose
    coefficient is lambda.
    """

    def __init__(self, *, lambda_: Annotated[float, Ge(0)] = 0.01) -> None:
        super().__init__(lambda_)

    @torch.no_grad()
    def end_task(self, run: Run) -> None:
        self.gather(run, {name: torch.ones_like(p) for name, p in run.model.common_parameters().items()}, kept=0.0)
