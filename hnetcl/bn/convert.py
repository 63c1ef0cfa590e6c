"""Turning torch's batch-norm layers into ones with a statistics row per task."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hnetcl.algebra import Algebra
from hnetcl.bn.layer import BatchNormLayer


def convert_batchnorm(module: nn.Module, algebra: str | Algebra = "real", **options: Any) -> nn.Module:
    """Replaces every BatchNorm1d, 2d, 3d and SyncBatchNorm (with `sync`) inside `module` by a `BatchNormLayer`, in place.

    With algebra "real" the layers keep weights, running statistics, eps, momentum, mode, device and dtype, and so the module's
    output. Another algebra whitens, which no per-channel layer did: such layers keep eps, momentum, mode, device and dtype, and
    start afresh otherwise. Lazy layers must have seen their first batch. A layer that occurs twice still does afterwards.

        net = convert_batchnorm(torchvision.models.resnet18())

    Args:
        module: any module; it is changed, unless it is a batch-norm layer itself.
        algebra: of the new layers.
        options: further arguments of `BatchNormLayer`, in place of what would be kept.

    Returns:
        The module; the new layer where `module` is a batch-norm layer itself.

    Raises:
        ArgumentError: a layer's channels are not a multiple of d.
    """
    return _convert(module, {"algebra": algebra, **options}, {})


def _convert(module: nn.Module, options: dict[str, Any], done: dict[nn.Module, BatchNormLayer]) -> nn.Module:
    if isinstance(module, _BatchNorm):
        if module not in done:
            done[module] = _layer(module, options)
        return done[module]
    for name, child in module._modules.items():  # named_children passes over what it has seen
        if child is not None:
            module._modules[name] = _convert(child, options, done)
    return module


@torch.no_grad()
def _layer(old: _BatchNorm, options: dict[str, Any]) -> BatchNormLayer:
    kept: dict[str, Any] = {
        "stats": "tracked" if old.track_running_stats else "batch",
        "affine": old.affine,
        "momentum": old.momentum,
        "eps": old.eps,
        "sync": isinstance(old, nn.SyncBatchNorm),
    }
    new = BatchNormLayer(old.num_features, **{**kept, **options}).train(old.training)
    new.process_group = getattr(old, "process_group", None)
    like = next((t for t in (*old.parameters(), *old.buffers()) if t.is_floating_point()), None)
    if like is not None:
        new.to(like)
    own = {**dict(old.named_parameters(recurse=False)), **dict(old.named_buffers(recurse=False))}
    for name, parameter in new.named_parameters(recurse=False):
        if name in own:
            parameter.requires_grad_(own[name].requires_grad)
    if new.algebra.dim == 1:
        for name, value in (*new.named_parameters(recurse=False), *new.named_buffers(recurse=False)):
            if name in own:
                value.copy_(own[name].reshape(value.shape))
    return new
