"""How much each of the main network's parameters matters to what it predicts."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from hnetcl.bn import batchnorm_layers
from hnetcl.errors import ArgumentError
from hnetcl.model import HyperModel
from hnetcl.modes import evaluation_mode

NUMBERS_AT_ONCE = 2**25  # of gradients held at a time, 128 MB in float32


@torch.no_grad()
def fisher_information(model: HyperModel, task: int, x: Tensor, generator: torch.Generator) -> Tensor:
    r"""The diagonal Fisher information of a task's written parameters w, [P] in the order of `hnet.shapes`:

    .. math:: F_p = \frac{1}{N} \sum_n \left( \frac{\partial \log p(y_n \mid x_n, w)}{\partial w_p} \right)^2,
        \quad y_n \sim p(y \mid x_n, w)

    The labels are drawn from the model itself, as the Fisher information wants it (with the data's own labels it would be the
    "empirical" one). The network is in evaluation mode, with the task's own statistics.

    Args:
        x: N inputs of the task.
        generator: draws the labels; on the device of `x`.

    Raises:
        ArgumentError: batch-norm layers normalize by the batch, in which samples have no gradients of their own.

    Source: Kirkpatrick et al. 2017 (arXiv:1612.00796); on labels, Kunstner et al. 2019 (arXiv:1905.12558).
    """
    if any(layer.statistics_mode.evaluates_by_batch for layer in batchnorm_layers(model.net).values()):
        raise ArgumentError("importance", "fisher", "needs batch norm whose statistics don't depend on the batch")
    params = model.hnet(task)

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model.run(params, x[None], task), y[None])

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    with evaluation_mode(model):
        for some in x.split(max(1, NUMBERS_AT_ONCE // model.hnet.num_generated)):
            y = torch.multinomial(model.run(params, some, task).softmax(1), 1, generator=generator)[:, 0]
            for name, gradient in per_sample(params, some, y).items():
                total[name] += gradient.square().sum(0)
    return torch.cat([total[name].flatten() for name in model.hnet.shapes]) / len(x)
