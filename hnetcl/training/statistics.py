"""How far apart the tasks' statistics lie, and how well each still fits."""

import torch
from torch import Tensor

from hnetcl.bn import BatchNormLayer, batchnorm_layers
from hnetcl.bn.gaussian import distance
from hnetcl.bn.measure import Moments, watching
from hnetcl.model import HyperModel
from hnetcl.modes import evaluation_mode
from hnetcl.tasks import TaskSequence

IMAGES = 1000  # of a task, which its statistics are compared with


@torch.no_grad()
def statistics_report(
    model: HyperModel, sequence: TaskSequence, tasks: int, batch_size: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of every batch-norm layer that uses statistics in evaluation and runs in every task, by name, in float64
    (see `gaussian.distance`):

    - the distances between the statistics of all pairs of the first tasks [tasks, tasks];
    - the misfit of each of these tasks [tasks]: the distance of its statistics from those of what the layer is given now, for
      the first `IMAGES` training images of the task. It grows where the network moves on and the row does not.

    Args:
        batch_size: images at a time.
    """
    used: dict[str, list[tuple[Tensor, Tensor]]] = {}
    misfit: dict[str, list[Tensor]] = {}
    layers = batchnorm_layers(model.net)
    with evaluation_mode(model):
        for task in range(tasks):
            given: dict[str, Moments] = {}
            now: dict[str, tuple[Tensor, Tensor]] = {}

            def see(
                name: str,
                layer: BatchNormLayer,
                x: Tensor,
                given: dict[str, Moments] = given,
                now: dict[str, tuple[Tensor, Tensor]] = now,
            ) -> None:
                statistics = layer.evaluation_statistics()
                if statistics is not None:
                    now[name] = statistics
                    given.setdefault(name, Moments()).add(x, layer.algebra.dim)  # of all calls, where a layer runs twice

            data, params = sequence[task], model.hnet(task)
            with watching(model.net, see):
                for images in data.train.images[:IMAGES].split(batch_size):
                    model.run(params, data.preprocess(images), task)
            for name, moments in given.items():
                if moments.count > 1:
                    used.setdefault(name, []).append(now[name])
                    off = distance(*now[name], moments.centre, moments.covariance, layers[name].eps)
                    misfit.setdefault(name, []).append(off)

    apart = {}
    whole = [name for name in used if len(used[name]) == tasks]
    for name in whole:
        mean, cov = (torch.stack(values) for values in zip(*used[name], strict=True))
        apart[name] = distance(mean[:, None], cov[:, None], mean[None], cov[None], layers[name].eps).cpu()
    return apart, {name: torch.stack(misfit[name]).cpu() for name in whole}
