"""Networks that are not written here: torchvision's, and users' own."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hnetcl.bn import BATCH, VirtualBatchNormLayer, using_task
from hnetcl.errors import ArgumentError, one_line, one_of
from hnetcl.modes import evaluation_mode, start_training
from hnetcl.registry import register
from hnetcl.vision import import_torchvision


@register("net", "torchvision")
def torchvision_net(
    in_shape: Sequence[int], num_outputs: int, *, model: str = "resnet18", options: dict[str, Any] | None = None
) -> nn.Module:
    """A classification network of torchvision, untrained: [N, 3, H, W] -> [N, num_outputs].

    Args:
        in_shape: (3, H, W) of an image.
        num_outputs: K, logits per task.
        model: one of `torchvision.models.list_models(module=torchvision.models)`.
        options: further arguments of it.

    Raises:
        ArgumentError: no such network, or it does not take these options.
    """
    models = import_torchvision().models
    names = models.list_models(module=models)
    if model not in names:
        raise one_of("model", model, names)
    try:
        net: nn.Module = models.get_model(model, weights=None, num_classes=num_outputs, **(options or {}))
    except (TypeError, ValueError) as error:
        raise ArgumentError("options", options, f"torchvision's {model} refuses them ({one_line(error)})") from error
    return net


def require_logits(net: Any, name: str, in_shape: Sequence[int], num_outputs: int) -> None:
    """Refuses what does not map two images to logits; lazy layers know their sizes from then on.

    Args:
        net: what a network's maker has made.
        name: of the network, for messages.
        in_shape: (C, H, W) of an image.
        num_outputs: K, logits per task.

    Raises:
        ArgumentError: it is no module, can't take such images, or gives something else.
    """
    if not isinstance(net, nn.Module):
        raise ArgumentError("net", name, f"must make a torch.nn.Module, not {type(net).__name__}")
    try:
        with torch.no_grad(), evaluation_mode(net), _without_references(net):
            logits = net(torch.zeros(2, *in_shape))
    except (RuntimeError, ValueError, AssertionError) as error:  # how torch's and torchvision's layers refuse a shape
        raise ArgumentError("net", name, f"can't take images of shape {tuple(in_shape)} ({one_line(error)})") from error
    got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if got != (2, num_outputs):
        raise ArgumentError("net", name, f"must map two images to logits of shape {(2, num_outputs)}, not {got}")
    start_training(net)


def _without_references(net: nn.Module) -> AbstractContextManager[None]:
    """Within, virtual batch norm, which has no reference batch yet, normalizes by the batch, and nothing is kept of that."""
    virtual = any(isinstance(module, VirtualBatchNormLayer) for module in net.modules())
    return using_task(net, BATCH) if virtual else nullcontext()
