"""Networks that are not written here: torchvision's, and users' own under the name that they registered."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hnetcl.errors import ArgumentError, one_line, one_of
from hnetcl.modes import evaluation_mode, start_training
from hnetcl.vision import import_torchvision

Maker = TypeVar("Maker", bound=Callable[..., nn.Module])
REGISTERED: dict[str, Callable[..., nn.Module]] = {}


def register_net(name: str) -> Callable[[Maker], Maker]:
    """Gives a network a name that the command line knows, and returns it as it is.

        @hnetcl.register_net("tower")
        def tower(in_shape, num_classes, width=32):
            convolution = [nn.Conv2d(in_shape[0], width, 3), nn.BatchNorm2d(width), nn.ReLU()]
            return nn.Sequential(*convolution, nn.Flatten(), nn.LazyLinear(num_classes))

    `net=custom net.model=tower net.options.width=64 imports=[FILE]` then trains it. Its batch-norm layers become
    `BatchNormLayer`s, its lazy layers get their sizes. A name that is registered again means the newest.

    Args:
        name: for `net.model`.

    Returns:
        A decorator for what makes the network, a function or a class, called with `in_shape` (C, H, W), `num_classes` and what
        stands in `net.options`, all by name.
    """

    def register(maker: Maker) -> Maker:
        REGISTERED[name] = maker
        return maker

    return register


def custom_net(in_shape: Sequence[int], num_classes: int, model: str, options: Mapping[str, Any]) -> nn.Module:
    """A registered network: [N, C, H, W] -> [N, num_classes].

    Args:
        in_shape: (C, H, W) of an image.
        num_classes: K, logits per task.
        model: the name it was registered under.
        options: further arguments of its maker.

    Raises:
        ArgumentError: no such name, the maker does not take these options, or what it makes does not map images to logits.
    """
    if model not in REGISTERED:
        known = ", ".join(sorted(REGISTERED)) or "none"
        raise ArgumentError(
            "model", model, f"is not registered (registered: {known}); imports=[MODULE] names what registers it"
        )
    maker, arguments = REGISTERED[model], {"in_shape": tuple(in_shape), "num_classes": num_classes, **options}
    taken = signature(maker)
    try:
        taken.bind(**arguments)
    except TypeError as error:
        raise ArgumentError("options", dict(options), f"{error}; {model} has the arguments {taken}") from error
    return _checked(maker(**arguments), model, in_shape, num_classes)


def torchvision_net(in_shape: Sequence[int], num_classes: int, model: str, options: Mapping[str, Any]) -> nn.Module:
    """A classification network of torchvision, untrained: [N, 3, H, W] -> [N, num_classes].

    Args:
        in_shape: (3, H, W) of an image.
        num_classes: K, logits per task.
        model: one of `torchvision.models.list_models(module=torchvision.models)`.
        options: further arguments of it.

    Raises:
        ArgumentError: no such network, it does not take these options, or does not map such images to logits.
    """
    models = import_torchvision().models
    names = models.list_models(module=models)
    if model not in names:
        raise one_of("model", model, names)
    try:
        net = models.get_model(model, weights=None, num_classes=num_classes, **options)
    except (TypeError, ValueError) as error:
        raise ArgumentError("options", dict(options), f"torchvision's {model} refuses them ({one_line(error)})") from error
    return _checked(net, model, in_shape, num_classes)


def _checked(net: Any, model: str, in_shape: Sequence[int], num_classes: int) -> nn.Module:
    """The network, if it maps two images to logits; its lazy layers know their sizes from then on."""
    if not isinstance(net, nn.Module):
        raise ArgumentError("model", model, f"must make a torch.nn.Module, not {type(net).__name__}")
    try:
        with torch.no_grad(), evaluation_mode(net):
            logits = net(torch.zeros(2, *in_shape))
    except (RuntimeError, ValueError, AssertionError) as error:  # how torch's and torchvision's layers refuse a shape
        raise ArgumentError("model", model, f"can't take images of shape {tuple(in_shape)} ({one_line(error)})") from error
    got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if got != (2, num_classes):
        raise ArgumentError("model", model, f"must map two images to logits of shape {(2, num_classes)}, not {got}")
    start_training(net)
    return net
