"""How far apart the tasks' statistics lie, and how well each still fits."""

import torch
from torch import Tensor

from hnetcl.bn import BatchNormLayer
from hnetcl.bn.gaussian import distance
from hnetcl.bn.measure import Moments, watching
from hnetcl.model import HyperModel
from hnetcl.modes import evaluation_mode
from hnetcl.tasks import TaskSequence


@torch.no_grad()
def statistics_report(
    model: HyperModel, sequence: TaskSequence, tasks: int, batch_size: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of every batch-norm layer that uses statistics in evaluation, by name, in float64 (see `gaussian.distance`):

    - the distances between the statistics of all pairs of the first tasks [tasks, tasks];
    - the misfit of each of these tasks [tasks]: the distance of its statistics from those of what the layer is given now, for
      the first `batch_size` training images of the task. It grows where the network moves on and the row does not.
    """
    used: dict[str, list[tuple[Tensor, Tensor]]] = {}
    misfit: dict[str, list[Tensor]] = {}
    eps: dict[str, float] = {}

    def see(name: str, layer: BatchNormLayer, x: Tensor) -> None:
        statistics = layer.evaluation_statistics()
        if statistics is None:
            return
        moments = Moments()
        moments.add(x, layer.algebra.dim)
        used.setdefault(name, []).append(statistics)
        apart = distance(*statistics, moments.centre, moments.covariance, layer.eps)
        misfit.setdefault(name, []).append(apart)
        eps[name] = layer.eps

    with evaluation_mode(model), watching(model.net, see):
        for task in range(tasks):
            data = sequence[task]
            model(data.preprocess(data.train.images[:batch_size]), task)

    apart = {}
    for name, rows in used.items():
        mean, cov = (torch.stack(values) for values in zip(*rows, strict=True))
        apart[name] = distance(mean[:, None], cov[:, None], mean[None], cov[None], eps[name]).cpu()
    return apart, {name: torch.stack(values).cpu() for name, values in misfit.items()}
