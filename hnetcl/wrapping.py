"""Any module under a hypernetwork, in one call."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from hnetcl.bn import NormLayer, convert_batchnorm
from hnetcl.errors import ArgumentError
from hnetcl.hnets import ChunkedHyperNetwork, HyperNetwork, initial_parameters
from hnetcl.model import HyperModel
from hnetcl.patterns import matching

NORMS = (NormLayer, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm)


def wrap(
    module: nn.Module,
    num_tasks: int,
    generate: Sequence[str] | str = "all",
    shared: str = "trained",
    init: str = "own",
    stats: str = "tracked",
    precision: str = "float32",
    hnet: Callable[..., HyperNetwork] = ChunkedHyperNetwork,
    **options: Any,
) -> HyperModel:
    """Puts a module under a hypernetwork, which writes its parameters for every task.

        model = hnetcl.wrap(torchvision.models.resnet18(num_classes=10), num_tasks=10)
        logits = model(images, task=3)

    The module's batch-norm layers become `BatchNormLayer`s with a row of statistics per task; before training, what is written
    has the scale that the module's own initial values have. Tied parameters are written once.

    Args:
        module: maps a batch to logits; it is changed.
        num_tasks: known from the start.
        generate: what is written: "all", "norm" (the parameters of norm layers), or name patterns as in a shell.
        shared: what becomes of all other parameters, see `HyperModel`.
        init: the values whose variance the written parameters start with, see `initial_parameters`.
        stats: of the batch-norm layers, see `BatchNormLayer`.
        precision: of the network, see `HyperModel`.
        hnet: a kind of hypernetwork.
        options: further arguments of it.

    Raises:
        ArgumentError: a pattern that no parameter matches, nothing to write, or an argument of a part is refused.
    """
    net = convert_batchnorm(module, stats=stats)
    values = initial_parameters(net, init)
    initial = {name: values[name] for name in _chosen(net, list(values), generate)}
    shapes = {name: value.shape for name, value in initial.items()}
    return HyperModel(net, hnet(shapes=shapes, num_tasks=num_tasks, initial=initial, **options), shared, precision)


def _chosen(net: nn.Module, names: list[str], generate: Sequence[str] | str) -> list[str]:
    """The names to write, in the module's order."""
    if generate == "all":
        return names
    if generate == "norm":
        norms = {name for name, module in net.named_modules() if isinstance(module, NORMS)}
        chosen = [name for name in names if name.rpartition(".")[0] in norms]
        if not chosen:
            raise ArgumentError("generate", generate, f"{type(net).__name__} has no norm layer with parameters")
        return chosen
    return matching("generate", [generate] if isinstance(generate, str) else generate, names)
