"""Choosing the statistics row of every batch-norm layer in a module."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from hnetcl.bn.layer import BatchNormLayer


def batchnorm_layers(module: nn.Module) -> dict[str, BatchNormLayer]:
    """The batch-norm layers in a module, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BatchNormLayer)}


@contextmanager
def using_task(module: nn.Module, row: int | Tensor | str) -> Iterator[None]:
    """Within, every batch-norm layer of `module` reads and updates that row.

    Args:
        row: the row's number, or `BATCH` for the batch's own statistics.
    """
    layers = list(batchnorm_layers(module).values())
    before = [layer.row for layer in layers]
    for layer in layers:
        layer.row = row
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.row = old
