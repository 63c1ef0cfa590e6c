"""Choosing the row of every norm layer in a module."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from hnetcl.bn.base import NormLayer
from hnetcl.bn.layer import BatchNormLayer
from hnetcl.modules import all_modules


def norm_layers(module: nn.Module) -> dict[str, NormLayer]:
    """The norm layers in a module, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, NormLayer)}


def batchnorm_layers(module: nn.Module) -> dict[str, BatchNormLayer]:
    """The batch-norm layers in a module, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BatchNormLayer)}


def row_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The rows that are parameters (`stats="learnable"`), by name: a task's own, never written by a hypernetwork."""
    return {
        f"{prefix}.{name}" if prefix else name: value
        for prefix, layer in norm_layers(module).items()
        for name, value in layer.rows.items()
        if isinstance(value, nn.Parameter)
    }


def learned_values(module: nn.Module) -> dict[str, Tensor]:
    """What training changes, by name: all that learns, and the rows of statistics. Not other buffers, as masks and counters."""
    learned: dict[str, Tensor] = {name: value for name, value in module.named_parameters() if value.requires_grad}
    for name, layer in norm_layers(module).items():
        learned |= {f"{name}.{row}" if name else row: value for row, value in layer.rows.items()}
    return learned


def writable_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """What a hypernetwork may write: all parameters but rows of statistics, by name; tied ones under their first name."""
    rows = row_parameters(net)
    return {name: parameter for name, parameter in net.named_parameters() if name not in rows}


@contextmanager
def using_task(module: nn.Module, row: int | Tensor | str) -> Iterator[None]:
    """Within, every norm layer of `module` reads and updates that row.

    Args:
        row: the row's number, as an int or a 0-dim tensor (in evaluation also a vector of N, one for each sample); or `BATCH`
            for the batch's own statistics.

    Raises:
        ValueError: a layer has no such row.
    """
    layers = [layer for layer in all_modules(module) if isinstance(layer, NormLayer)]
    chosen = [layer.choose(row) for layer in layers]
    before = [layer.row for layer in layers]
    for layer, own in zip(layers, chosen, strict=True):
        layer.row = own
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.row = old
