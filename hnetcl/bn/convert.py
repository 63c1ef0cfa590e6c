"""Turning torch's batch-norm layers into ones with a statistics row per task."""

from functools import partial
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from hnetcl.algebra import Algebra
from hnetcl.bn.joined import CHILDREN, OWN, PLAIN, TORCHS, adopt, agree, blank, clash
from hnetcl.bn.layer import BatchNormLayer
from hnetcl.errors import ArgumentError
from hnetcl.modules import Held, buffer_places, held, owner, parameter_places


def convert_batchnorm(module: nn.Module, algebra: str | Algebra = "real", **options: Any) -> nn.Module:
    """Replaces every BatchNorm1d, 2d, 3d and SyncBatchNorm (with `sync`) inside `module` by a `BatchNormLayer`, in place.

    With algebra "real" the layers keep weights, running statistics, eps, momentum, mode, device and dtype, and so the module's
    output. Their statistics are those of every row that is opened later, too. Another algebra whitens, which no per-channel
    layer did: such layers keep eps, momentum, mode, device and dtype, and start afresh otherwise. Both keep hooks, attributes
    and submodules. As in torch, whether there are weights, biases and running statistics is told by the tensors, not by flags.
    Lazy layers must have seen their first batch. A layer that occurs twice still does afterwards; ours stay what they are.

        net = convert_batchnorm(torchvision.models.resnet18())

    A layer of a subclass becomes one of a class that derives from both, with the same state-dict names: its own `forward` runs,
    and `super().forward(x)` in it is ours; or, where it computes batch norm itself and then calls its submodules (timm's
    `BatchNormAct2d`), ours and then they. A copy is tried on a random batch first, and a layer whose output or statistics
    would change in evaluation or training is refused.

    Args:
        module: any module; it is changed, unless it is a batch-norm layer itself.
        algebra: of the new layers.
        options: further arguments of `BatchNormLayer`, in place of what would be kept.

    Returns:
        The module; the new layer where `module` is a batch-norm layer itself.

    Raises:
        ArgumentError: a layer's channels are not a multiple of d; or a layer, named by its path, does what can't be kept.
    """
    olds: dict[nn.Module, str] = {layer: name for name, layer in module.named_modules() if _is_torchs(layer)}
    again = _held_again(module, olds)
    ties = [places for places in parameter_places(module).values() if len(places) > 1]
    done: dict[nn.Module, nn.Module] = {}
    converted = _convert(module, "", {"algebra": algebra, **options}, done)
    for each in again:
        each.holder[each.key] = done[each.value]
    for places in ties:
        _tie(converted, places)
    return converted


def _is_torchs(module: nn.Module) -> TypeGuard[_BatchNorm]:
    return isinstance(module, _BatchNorm) and not isinstance(module, BatchNormLayer)


def _held_again(module: nn.Module, olds: dict[nn.Module, str]) -> list[Held]:
    """Where layers are held beside their places in `module`; refuses what would not follow the conversion."""
    for places in buffer_places(module).values():
        layers = [owner(module, place)[0] for place in places]
        if len(places) > 1 and any(layer in olds for layer in layers):
            raise ArgumentError(places[0], places[1], "can't be converted, for they are one buffer: each layer needs its own")
    parameters = [parameter for layer in olds for parameter in layer.parameters(recurse=False)]
    found = []
    for each in held(module, [*olds, *parameters]):
        holding = module.get_submodule(each.module)
        if holding in olds and each.value is holding:
            continue  # which is looked at with the layer
        if each.holder is None or holding in olds or not isinstance(each.value, nn.Module):
            what = olds.get(each.value, "a batch norm's weight or bias")
            rule = "can't be converted, for it is also held where it can't be replaced"
            raise ArgumentError(each.module or "module", what, rule)
        found.append(each)
    return found


def _tie(module: nn.Module, places: list[str]) -> None:
    """Makes the parameters at these places one again."""
    owners = [owner(module, place) for place in places]
    first = next((layer._parameters[key] for layer, key in owners if layer._parameters.get(key) is not None), None)
    for layer, key in owners:
        own = layer._parameters.get(key)
        if own is None or first is None:
            continue
        if own.shape != first.shape or own.dtype != first.dtype:
            rule = "can't be converted, for they are one parameter, and would differ in shape"
            raise ArgumentError(places[0], places[-1], rule)
        layer._parameters[key] = first


def _convert(module: nn.Module, path: str, options: dict[str, Any], done: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in done:
        return done[module]
    done[module] = module
    if _is_torchs(module):
        done[module] = module = _converted(module, path, options)
    for name, child in module._modules.items():  # named_children passes over what it has seen
        if child is not None:
            module._modules[name] = _convert(child, f"{path}.{name}".lstrip("."), options, done)
    return module


def _converted(old: _BatchNorm, path: str, options: dict[str, Any]) -> BatchNormLayer:
    """The layer that takes the place of `old`."""

    def refused(why: str) -> ArgumentError:
        return ArgumentError(path or "module", type(old).__name__, why)

    if isinstance(old, LazyModuleMixin) and old.has_uninitialized_params():
        raise refused("a lazy layer must have seen its first batch before it is converted")
    if "forward" in vars(old) or any(getattr(value, "__self__", None) is old for value in vars(old).values()):
        raise refused("can't be converted, for a method of this very layer was replaced")
    for name in () if is_parametrized(old) else ("weight", "bias"):
        if name not in old._parameters:
            raise refused(f"can't be converted, for its {name} is no parameter, but computed from others")
    taken = clash(old)
    if taken is not None:
        raise refused(f"can't be converted, for it has a {taken} of its own, which means something else in a BatchNormLayer")
    if type(old) in TORCHS:
        return _layer(old, options, PLAIN)
    forwards = [OWN, CHILDREN]
    if type(old).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
        forwards = [PLAIN]
    elif not old._modules:
        forwards = [OWN]
    real = {"algebra": "real"}
    forward = next((each for each in forwards if agree(old, partial(_layer, options=real, forward=each))), None)
    if forward is None:
        raise refused(
            "can't be converted, for its output would change: it must call super().forward(x) and leave statistics alone"
        )
    new = _layer(old, options, forward)
    if new.algebra.dim > 1 and is_parametrized(old):
        raise refused("has parametrized weights, which only algebra=real can keep")
    return new


@torch.no_grad()
def _layer(old: Any, options: dict[str, Any], forward: str) -> BatchNormLayer:
    """A layer in place of `old`, of the class that `join` makes for its class and `forward`."""
    tracked = old.running_mean is not None or old.running_var is not None
    kept: dict[str, Any] = {
        "stats": "tracked" if tracked else "batch",
        "affine": old.weight is not None or old.bias is not None,
        "momentum": old.momentum,
        "eps": old.eps,
        "sync": isinstance(old, nn.SyncBatchNorm),
    }
    new = BatchNormLayer(old.num_features, **{**kept, **options}).train(old.training)
    new.process_group = getattr(old, "process_group", None)
    new.track_running_stats = new.track_running_stats and (old.track_running_stats or not tracked)
    like = next((t for t in (*old.parameters(recurse=False), *old.buffers(recurse=False)) if t.is_floating_point()), None)
    if like is not None:
        new.to(like)
    for name in ("weight", "bias"):
        value, own = old._parameters.get(name), new._parameters[name]
        if getattr(old, name) is None and "affine" not in options:
            new._parameters[name] = None
        elif own is not None and value is not None:
            own.requires_grad_(value.requires_grad)
            if new.algebra.dim == 1:
                own.copy_(value)
        elif value is None and is_parametrized(old, name):
            del new._parameters[name]  # the class computes it
    if new.algebra.dim == 1 and tracked:
        count = old.num_batches_tracked
        new.give(old.running_mean, old.running_var, torch.zeros((), dtype=torch.long) if count is None else count)
    if type(old) not in TORCHS:
        state, new = vars(new), blank(type(old), forward)
        vars(new).update(state)
    adopt(new, old)
    return new
