"""How far apart the tasks' statistics lie, and how well each still fits."""

import torch
from torch import Tensor

from hnetcl.bn import BatchNormLayer
from hnetcl.bn.gaussian import distance
from hnetcl.bn.measure import Moments, watching
from hnetcl.model import HyperModel
from hnetcl.tasks import TaskSequence

IMAGES = 1000  # of a task, which its statistics are compared with


@torch.no_grad()
def statistics_report(
    model: HyperModel, sequence: TaskSequence, tasks: int, batch_size: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of every batch-norm layer that uses statistics in evaluation, by name, in float64 (see `gaussian.distance`):

    - the distances between the statistics of all pairs of the first tasks [tasks, tasks];
    - the misfit of each of these tasks [tasks]: the distance of its statistics from those of what the layer is given now, for
      the first `IMAGES` training images of the task. It grows where the network moves on and the row does not.

    Args:
        batch_size: images at a time.
    """
    used: dict[str, list[tuple[Tensor, Tensor]]] = {}
    misfit: dict[str, list[Tensor]] = {}
    eps: dict[str, float] = {}
    seen: dict[str, tuple[tuple[Tensor, Tensor], Moments]] = {}  # of one task: statistics, and what the layer is given

    def see(name: str, layer: BatchNormLayer, x: Tensor) -> None:
        statistics = layer.evaluation_statistics()
        if statistics is None:
            return
        eps[name] = layer.eps
        seen.setdefault(name, (statistics, Moments()))[1].add(x, layer.algebra.dim)

    training = model.training
    model.eval()
    for task in range(tasks):
        data, params = sequence[task], model.hnet(task)
        with watching(model.net, see):
            for images in data.train.images[:IMAGES].split(batch_size):
                model.run(params, data.preprocess(images), task)
        for name, (statistics, moments) in seen.items():
            used.setdefault(name, []).append(statistics)
            misfit.setdefault(name, []).append(distance(*statistics, moments.centre, moments.covariance, eps[name]))
        seen.clear()
    model.train(training)

    apart = {}
    for name, rows in used.items():
        mean, cov = (torch.stack(values) for values in zip(*rows, strict=True))
        apart[name] = distance(mean[:, None], cov[:, None], mean[None], cov[None], eps[name]).cpu()
    return apart, {name: torch.stack(values).cpu() for name, values in misfit.items()}
