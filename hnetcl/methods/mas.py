"""Memory aware synapses."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from hnetcl.importance import SampleGradients, require_samples
from hnetcl.methods.base import Run
from hnetcl.methods.quadratic import QuadraticPenalty
from hnetcl.model import HyperModel
from hnetcl.modes import evaluation_mode
from hnetcl.registry import register
from hnetcl.tasks import TaskSequence


@register("method", "mas")
class MAS(QuadraticPenalty):
    r"""Adds, with theta* the parameters after the newest task,

    .. math:: \lambda \sum_p \Omega_p (\theta_p - \theta^*_p)^2, \quad
        \Omega_p = \sum_t \frac{1}{N} \sum_n \left| \frac{\partial \lVert f(x_{tn}) \rVert^2}{\partial \theta_p} \right|

    A parameter counts if the logits f depend on it. Each sample has a gradient of its own: with those of whole batches the
    absolute value would depend on the batch size. Labels are not needed.

    Hsu et al. 2018 take the mean over the K logits in use, not their sum, and the gradients of batches of 128. For single
    samples their coefficient would be K lambda; opposite signs cancel in a batch, so that theirs is weaker than that.

    Args:
        lambda_: strength.
        samples: training images of a task that the importance is estimated on, drawn once; all where a task has fewer.

    Source: Aljundi et al. 2018 (arXiv:1711.09601), equations 3 and 6.
    """

    def __init__(self, *, lambda_: Annotated[float, Ge(0)] = 1.0, samples: Annotated[int, Ge(1)] = 500) -> None:
        super().__init__(lambda_)
        self.samples = samples

    def check(self, model: HyperModel, sequence: TaskSequence) -> None:
        require_samples(model, "name", "mas")

    @torch.no_grad()
    def end_task(self, run: Run) -> None:
        train = run.data.train
        drawn = torch.randperm(len(train), generator=run.generator, device=train.labels.device)[: self.samples]
        gradients = SampleGradients(run.model, run.task, run.known_outputs(train.labels[drawn]))
        total = gradients.zeros()
        with evaluation_mode(run.model):
            for found in gradients.of(_squared_length, run.data.preprocess(train.images[drawn])):
                for name, gradient in found.items():
                    total[name] += gradient.abs_().sum(0)
        self.gather(run, {name: value / len(drawn) for name, value in total.items()})


def _squared_length(logits: Tensor) -> Tensor:
    return logits.square().sum()
