"""Online elastic weight consolidation."""

from typing import Annotated

import torch
from annotated_types import Ge, Le

from hnetcl.importance.fisher import Labels, require_labels, require_samples
from hnetcl.methods.base import Run
from hnetcl.methods.ewc import task_fisher
from hnetcl.methods.quadratic import QuadraticPenalty
from hnetcl.model import HyperModel
from hnetcl.registry import register
from hnetcl.tasks import TaskSequence


@register("method", "online_ewc")
class OnlineEWC(QuadraticPenalty):
    r"""Adds, with theta* the parameters after the newest task, and F_t the diagonal Fisher information right after task t,

    .. math:: \frac{\lambda}{2} \sum_p F^*_p (\theta_p - \theta^*_p)^2, \quad F^* \leftarrow \gamma F^* + F_t

    It differs from EWC, which holds to a weighted mean of the parameters after each task.

    Args:
        lambda_: strength.
        gamma: what is left of the older tasks' information at the end of a task.
        labels, samples: see `EWC`.

    Hsu et al. 2018 have no factor 1/2: their coefficient is lambda / 2, with `labels="predicted"` and all of a task's images.

    Source: Schwarz et al. 2018 (arXiv:1805.06370), section 3.2.
    """

    def __init__(
        self,
        *,
        lambda_: Annotated[float, Ge(0)] = 10000.0,
        gamma: Annotated[float, Ge(0), Le(1)] = 1.0,
        labels: Labels = "exact",
        samples: Annotated[int, Ge(1)] = 500,
    ) -> None:
        super().__init__(lambda_ / 2)
        self.gamma, self.labels, self.samples = gamma, labels, samples

    def check(self, model: HyperModel, sequence: TaskSequence) -> None:
        require_samples(model, "labels", self.labels)
        require_labels(self.labels, sequence.loss)

    @torch.no_grad()
    def end_task(self, run: Run) -> None:
        self.gather(run, task_fisher(run, self.labels, self.samples), self.gamma)
