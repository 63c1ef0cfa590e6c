"""Elastic weight consolidation."""

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from hnetcl.importance.fisher import Labels, parameter_fisher, require_labels, require_samples
from hnetcl.methods.base import Run
from hnetcl.methods.quadratic import QuadraticPenalty
from hnetcl.model import HyperModel
from hnetcl.registry import register
from hnetcl.tasks import TaskSequence


@register("method", "ewc")
class EWC(QuadraticPenalty):
    r"""Adds, with F_t the diagonal Fisher information right after task t, whose parameters then were theta_t,

    .. math:: \frac{\lambda}{2} \sum_{t < T} \sum_p F_{tp} (\theta_p - \theta_{tp})^2

    The sum over tasks is one quadratic function, whose weights and centre are kept: memory does not grow with the tasks.

    Args:
        lambda_: strength.
        labels: of the Fisher information: "exact", an expectation over the classes that the model predicts; "sampled", one
            label drawn from it; "predicted", the class that it finds likeliest; "empirical", the data's.
        samples: training images that it is estimated on, drawn once; all where a task has fewer.
        decay: what is left of the older tasks' weights at the end of a task.

    Hsu et al. 2018 have no factor 1/2: their coefficient is lambda / 2, with `labels="predicted"` and all of a task's images.

    Sources: Kirkpatrick et al. 2017 (arXiv:1612.00796), equation 3; Huszar 2018 (arXiv:1712.03847), on the sum over tasks.
    """

    def __init__(
        self,
        *,
        lambda_: Annotated[float, Ge(0)] = 10000.0,
        labels: Labels = "exact",
        samples: Annotated[int, Ge(1)] = 500,
        decay: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(lambda_ / 2)
        self.labels, self.samples, self.decay = labels, samples, decay

    def check(self, model: HyperModel, sequence: TaskSequence) -> None:
        require_samples(model, "labels", self.labels)
        require_labels(self.labels, sequence.loss)

    @torch.no_grad()
    def end_task(self, run: Run) -> None:
        fisher = task_fisher(run, self.labels, self.samples)
        for name, parameter in run.model.common_parameters().items():
            self._add(name, fisher[name], parameter.detach())

    def _add(self, name: str, fisher: Tensor, theta: Tensor) -> None:
        """Adds a quadratic function to the one that is kept, up to a constant."""
        old = self.decay * self.importance.get(name, torch.zeros_like(fisher))
        total = old + fisher
        centre = (old * self.anchor.get(name, theta) + fisher * theta) / total
        self.importance[name], self.anchor[name] = total, torch.where(total > 0, centre, theta)


def task_fisher(run: Run, labels: Labels, samples: int) -> dict[str, Tensor]:
    """The Fisher information of the current task, estimated on so many of its training images, by name."""
    train = run.data.train
    drawn = torch.randperm(len(train), generator=run.generator, device=train.labels.device)[:samples]
    y = train.labels[drawn] + run.sequence.first_output(run.task)
    x = run.data.preprocess(train.images[drawn])
    return parameter_fisher(run.model, run.task, x, y, labels, run.generator, run.known_outputs(y), run.sequence.loss)
