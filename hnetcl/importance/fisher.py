"""How much each of the main network's parameters matters to what it predicts."""

from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, vmap

from hnetcl.bn import batchnorm_layers
from hnetcl.errors import ArgumentError
from hnetcl.importance.gradients import HELD_AT_ONCE, SampleGradients
from hnetcl.model import HyperModel
from hnetcl.modes import evaluation_mode
from hnetcl.tasks import Loss, loss_of

Labels = Literal["exact", "sampled", "predicted", "empirical"]
SPREAD = 0.5**0.5  # of the Gaussian whose negative log-likelihood is the squared error, up to a constant


@torch.no_grad()
def fisher_information(
    model: HyperModel,
    task: int,
    x: Tensor,
    generator: torch.Generator,
    active: Tensor | None = None,
    loss: Loss = "cross_entropy",
) -> Tensor:
    r"""The diagonal Fisher information of a task's written parameters w, [P] in the order of `hnet.shapes`:

    .. math:: F_p = \frac{1}{N} \sum_n \left( \frac{\partial \log p(y_n \mid x_n, w)}{\partial w_p} \right)^2,
        \quad y_n \sim p(y \mid x_n, w)

    The labels are drawn from the model itself, as the Fisher information wants it (with the data's own labels it would be the
    "empirical" one). The network is in evaluation mode, with the task's own statistics.

    Args:
        x: N inputs of the task.
        generator: draws the labels; on the device of `x`.
        active: the classes that come into question, bool [K]; None for all.
        loss: of the sequence; of a regression, p is the Gaussian of variance 1/2 around the output.

    Raises:
        ArgumentError: batch-norm layers normalize by the batch, in which samples have no gradients of their own.

    Source: Kirkpatrick et al. 2017 (arXiv:1612.00796); on labels, Kunstner et al. 2019 (arXiv:1905.12558).
    """
    require_samples(model, "importance", "fisher")
    params = model.hnet(task)

    def logits(params: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = model.run(params, x, task)
        return found if active is None else found[:, active]

    def objective(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss_of(loss, logits(params, x[None]), y[None])

    per_sample = vmap(grad(objective), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    with evaluation_mode(model):
        for some in x.split(max(1, HELD_AT_ONCE // model.hnet.num_generated)):
            outputs = logits(params, some)
            if loss == "cross_entropy":
                y = torch.multinomial(outputs.softmax(1), 1, generator=generator)[:, 0]
            else:
                y = _target("sampled", outputs[:, 0], outputs[:, 0], generator)
            for name, gradient in per_sample(params, some, y).items():
                total[name] += gradient.square().sum(0)
    return torch.cat([total[name].flatten() for name in model.hnet.shapes]) / len(x)


@torch.no_grad()
def parameter_fisher(
    model: HyperModel,
    task: int,
    x: Tensor,
    y: Tensor,
    labels: Labels,
    generator: torch.Generator,
    active: Tensor | None = None,
    loss: Loss = "cross_entropy",
) -> dict[str, Tensor]:
    r"""The diagonal Fisher information of the parameters that the tasks have in common, by name, each of its shape:

    .. math:: F_p = \frac{1}{N} \sum_n \sum_k q_{nk} \left( \frac{\partial \log p(k \mid x_n)}{\partial \theta_p} \right)^2

    The network is in evaluation mode, with the task's own statistics; each sample has a gradient of its own.

    Args:
        x, y: N inputs of the task, and their labels.
        labels: q. "exact": what the model predicts, p(k | x_n), in as many backwards as there are classes. "sampled": one label
            drawn from it. "predicted": its argmax, and "empirical": the data's label, which are not the Fisher information, but
            are used in its place.
        generator: draws labels; on the device of `x`.
        active: the classes that come into question, bool [K]; None for all.
        loss: of the sequence; of a regression, p is the Gaussian of variance 1/2 around the output, whose Fisher information is
            2 (df/dtheta)^2, and there is no "predicted".

    Raises:
        ArgumentError: batch-norm layers normalize by the batch, in which samples have no gradients of their own.

    Sources: Kirkpatrick et al. 2017 (arXiv:1612.00796); van de Ven 2025 (arXiv:2502.11756), on the ways to compute it.
    """
    require_samples(model, "labels", labels)
    gradients = SampleGradients(model, task, active)
    total = gradients.zeros()
    place = None if active is None else active.cumsum(0) - 1

    def objective(logits: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return weight[0].sqrt() * loss_of(loss, logits, y)

    with evaluation_mode(model):
        for some, own in zip(x.split(gradients.at_once), y.split(gradients.at_once), strict=True):
            outputs = gradients.logits(some)
            predicted, ones = outputs.softmax(1), torch.ones_like(outputs[:, 0])
            if loss != "cross_entropy":
                chosen = [(_target(labels, outputs[:, 0], own, generator), ones)]
            elif labels == "exact":
                chosen = [(torch.full_like(own, k), predicted[:, k]) for k in range(predicted.shape[1])]
            elif labels == "sampled":
                chosen = [(torch.multinomial(predicted, 1, generator=generator)[:, 0], ones)]
            elif labels == "predicted":
                chosen = [(predicted.argmax(1), ones)]
            else:
                chosen = [(own if place is None else place[own], ones)]
            for label, weight in chosen:
                for found in gradients.of(objective, some, label, weight):
                    for name, gradient in found.items():
                        total[name] += gradient.square_().sum(0)
    return {name: value / len(x) for name, value in total.items()}


def _target(labels: Labels, outputs: Tensor, own: Tensor, generator: torch.Generator) -> Tensor:
    """Of a regression [N]: at one standard deviation from the output, the squared gradient is its expectation."""
    if labels == "empirical":
        return own
    if labels == "exact":
        return outputs - SPREAD
    return outputs + SPREAD * torch.randn(outputs.shape, generator=generator, device=outputs.device)


def require_labels(labels: Labels, loss: Loss) -> None:
    """Refuses labels that a regression has not.

    Raises:
        ArgumentError: the likeliest class is asked for, of a regression: there the loss has no gradient at what is predicted.
    """
    if labels == "predicted" and loss != "cross_entropy":
        raise ArgumentError(
            "labels", labels, "is a class, and the sequence is a regression; allowed: empirical, exact, sampled"
        )


def require_samples(model: HyperModel, name: str, value: str) -> None:
    """Refuses a network in which samples have no gradients of their own.

    Raises:
        ArgumentError: of that name; batch-norm layers normalize by the batch.
    """
    if any(layer.statistics_mode.evaluates_by_batch for layer in batchnorm_layers(model.net).values()):
        rule = "needs batch norm whose statistics don't depend on the batch; allowed with bn.stats=batch: none"
        raise ArgumentError(name, value, rule)
