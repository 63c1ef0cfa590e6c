"""The statistics of what batch-norm layers are given: to compare a row with, or to replace it by."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hnetcl.bn.base import BATCH
from hnetcl.bn.conv_bn import ConvBatchNorm
from hnetcl.bn.layer import BatchNormLayer
from hnetcl.bn.rows import batchnorm_layers, using_task
from hnetcl.kernels.backends import Kernel
from hnetcl.kernels.layout import complex_to_real, to_numbers
from hnetcl.kernels.passes import moments
from hnetcl.modes import evaluation_mode


class Moments:
    """Mean [d, Q] and covariance [Q, d, d] of all inputs that a layer has seen, in float64.

    Batches are merged as in Chan et al. 1982: no sum of squares about zero is ever taken, for it would cancel.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.outer = 0, torch.zeros(()), torch.zeros(())

    @torch.no_grad()
    def add(self, x: Tensor, d: int) -> None:
        """Takes in x [N, C, *S]."""
        if not x.numel():
            return
        numbers = to_numbers(complex_to_real(x) if x.is_complex() else x, d)
        count = numbers.shape[0] * numbers.shape[3]
        mean, cov = (value.double() for value in moments(numbers))
        if not self.count:
            self.count, self.mean, self.outer = count, mean, cov * count
            return
        apart, total = mean - self.mean, self.count + count
        spread = torch.einsum("aq,bq->qab", apart, apart) * (self.count * count / total)
        self.outer = self.outer + cov * count + spread
        self.mean, self.count = self.mean + apart * (count / total), total

    @property
    def centre(self) -> Tensor:
        """[C]."""
        return self.mean.reshape(-1)

    @property
    def covariance(self) -> Tensor:
        """Unbiased, [Q, d, d]."""
        return self.outer / (self.count - 1)


@contextmanager
def watching(module: nn.Module, see: Callable[[str, BatchNormLayer, Tensor], None]) -> Iterator[None]:
    """Within, `see` is called with the name of every batch-norm layer that runs, the layer, and what it normalizes.

    That is not always the layer's input: a user's subclass may change it before. A layer that runs twice is seen twice.
    """
    names = {layer: name for name, layer in batchnorm_layers(module).items()}
    fusing: set[BatchNormLayer] = set()  # norms that are about to be given the input of a convolution before them

    def before_fused(fused: nn.Module, args: Any, kwargs: Any) -> None:
        assert isinstance(fused, ConvBatchNorm)
        see(names[fused.norm], fused.norm, fused.conv(args[0] if args else kwargs["x"]))
        fusing.add(fused.norm)

    def watched(layer: BatchNormLayer) -> Callable[..., Tensor]:
        def normalize_by(kernel: Kernel, x: Tensor, shape: torch.Size, **given: Any) -> Tensor:
            if layer not in fusing:
                see(names[layer], layer, x)
            fusing.discard(layer)
            return BatchNormLayer.normalize_by(layer, kernel, x, shape, **given)

        return normalize_by

    pairs = [m for m in module.modules() if isinstance(m, ConvBatchNorm)]
    handles = [m.register_forward_pre_hook(before_fused, with_kwargs=True) for m in pairs]
    for layer in names:
        vars(layer)["normalize_by"] = watched(layer)
    try:
        yield
    finally:
        for layer in names:
            del vars(layer)["normalize_by"]
        for handle in handles:
            handle.remove()


@torch.no_grad()
def recalibrate(
    module: nn.Module, batches: Iterable[Tensor], stats_id: int = 0, call: Callable[[Tensor], Any] | None = None
) -> None:
    """Re-estimates a row of every batch-norm layer from data, in one pass: the mean and covariance of all batches together.

    In that pass the layers normalize each batch by its own statistics, as they did when the network was trained, and dropout
    is off. For weights that have moved on since the row was tracked. Layers that don't run in evaluation keep their row.

        recalibrate(net, loader, stats_id=2)
        recalibrate(model.net, images.split(1000), 2, call=lambda x: model(x, 2, BATCH))      # of a `HyperModel`

    Args:
        module: whose rows are replaced.
        batches: inputs of the module.
        stats_id: the row.
        call: runs the module on a batch, where that takes more than `module(batch)`.

    Raises:
        ValueError: there is no such row, or not a single batch; or the layers keep none, but use what a hypernetwork writes.

    Source: precise batch norm, Wu & Johnson 2021, Rethinking "Batch" in BatchNorm, section 3.
    """
    layers = {}
    for name, layer in batchnorm_layers(module).items():
        if layer.statistics_mode.keeps_rows:
            layer.get_stats(stats_id)
            layers[name] = layer
        elif layer.statistics_mode.written:
            raise ValueError(f"nothing to recalibrate: a hypernetwork writes the statistics of {layer}")
    seen = {name: Moments() for name in layers}

    def see(name: str, layer: BatchNormLayer, x: Tensor) -> None:
        if name in seen:
            seen[name].add(x, layer.algebra.dim)

    number = 0
    with evaluation_mode(module), using_task(module, BATCH), watching(module, see):
        for batch in batches:
            (call or module)(batch)
            number += 1
    if not number:
        raise ValueError("recalibrate needs at least one batch")
    for name, layer in layers.items():
        if not seen[name].count:
            continue
        mean, cov = seen[name].centre, seen[name].covariance
        layer.write(stats_id, *layer.statistics_mode.row(layer, mean, cov, torch.full((), number)))
