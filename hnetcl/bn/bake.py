"""A network for inference, of torch's layers: nothing is left that knows of algebras or of rows of statistics."""

import torch
from torch import nn

from hnetcl.bn.conv_bn import ConvBatchNorm, FusedBatchNormLayer
from hnetcl.bn.fixed import FixedNorm, FixedVirtualNorm
from hnetcl.bn.fold import OURS, as_real, evaluation_map, fold_batchnorm, is_hooked
from hnetcl.bn.layer import BatchNormLayer
from hnetcl.bn.rows import batchnorm_layers
from hnetcl.bn.virtual import VirtualBatchNormLayer
from hnetcl.kernels.layout import sum_dtype
from hnetcl.modules import copied

HALF = (torch.bfloat16, torch.float16)


def bake(module: nn.Module) -> nn.Module:
    """A copy of a network, in evaluation mode, that computes the same with torch's layers wherever it can.

    Batch norm is folded into the layer before it (`fold_batchnorm`) where that is exact, and is a `FixedNorm` elsewhere;
    a virtual layer a `FixedVirtualNorm`. Weights of every algebra become real matrices. Layers with hooks and subclasses stay
    as they are; in half precision nothing is folded, for the product would be rounded once more.

        net = bake(model.plain(2))

    Args:
        module: whose norm layers have one row of statistics, or where `using_task` chose one. Left as it is.

    Raises:
        ValueError: several rows and none chosen; or a layer normalizes by the batch's own statistics, so that what it gives for
            a sample depends on the others.
    """
    if layers := layers_by_batch(module):
        rule = "normalizes by the batch's own statistics: what it gives for a sample depends on the others"
        raise ValueError(f"{layers[0]} {rule}")
    baked = _folded(module)
    pairs = tuple(f"{name}." for name, layer in baked.named_modules() if isinstance(layer, ConvBatchNorm))  # looks into both
    made: dict[nn.Module, nn.Module | None] = {}
    for name, layer in list(baked.named_modules(remove_duplicate=False)):
        if f"{name}.".startswith(pairs) and pairs:
            continue
        if layer not in made:
            made[layer] = _fixed(layer)
        fixed = made[layer]
        if fixed is not None and not name:
            return fixed.eval()
        if fixed is not None:
            baked.set_submodule(name, fixed)
    return baked.eval()


def layers_by_batch(module: nn.Module) -> list[str]:
    """The batch-norm layers that use the batch's own statistics in evaluation, by name."""
    return [
        name
        for name, layer in batchnorm_layers(module).items()
        if layer.statistics_mode.uses_statistics and layer.evaluation_statistics() is None
    ]


def _folded(module: nn.Module) -> nn.Module:
    """The copy, with batch norm folded where that is exact."""
    tensors = [*module.parameters(), *module.buffers()]
    if not any(value.dtype in HALF for value in tensors):
        try:
            return fold_batchnorm(module)
        except ValueError:  # torch.fx can't trace it
            pass
    copy = copied(module).eval()
    for name, pair in list(copy.named_modules()):
        if name and type(pair) is ConvBatchNorm and not is_hooked(pair):
            copy.set_submodule(name, nn.Sequential(pair.conv, pair.norm))
    return copy


@torch.no_grad()
def _fixed(layer: nn.Module) -> nn.Module | None:
    """The layer of torch's, or the `FixedNorm`, that computes the same; None where the layer stays."""
    if is_hooked(layer):
        return None
    if type(layer) in OURS:
        return as_real(layer)
    if type(layer) is VirtualBatchNormLayer:
        gamma, own = layer.gamma(), [value.detach().clone() for value in layer.reference()]
        bias = None if layer.bias is None else layer.bias.detach().clone()
        gamma = None if gamma is None else gamma.detach()
        return FixedVirtualNorm(own, gamma, bias, dim=layer.algebra.dim, eps=layer.eps, kind=layer.whitening)
    if not isinstance(layer, BatchNormLayer) or type(layer) not in (BatchNormLayer, FusedBatchNormLayer):
        return None
    tensors = [*layer.parameters(), *layer.statistics_tensors().values()]
    like = next((value for value in tensors if value.is_floating_point()), torch.zeros(()))
    matrix, mean = evaluation_map(layer, like)
    dtype = sum_dtype(like.dtype)
    bias = None if layer.bias is None else layer.bias.detach().to(dtype, copy=True)
    return FixedNorm(matrix.to(dtype, copy=True), mean.to(dtype, copy=True), bias)
