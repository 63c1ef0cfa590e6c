"""Where a module's tensors are: each distinct (module, name) once, whatever names lead to it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hnetcl.numbers import as_parameter


def all_modules(net: nn.Module) -> list[nn.Module]:
    """`net` and all modules in it, each once. Quicker than `net.modules()`, which makes names: this is done at every step."""
    found, seen = [net], {id(net)}
    for module in found:  # which grows meanwhile
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                found.append(child)
    return found


def owner(net: nn.Module, place: str) -> tuple[nn.Module, str]:
    """The module that has a parameter or buffer, and its name there."""
    *path, key = place.split(".")
    for name in path:
        child = net._modules[name]
        assert child is not None
        net = child
    return net, key


def parameter_places(net: nn.Module) -> dict[str, list[str]]:
    """The places of every parameter, by its first name: several where modules share it.

    A module that is registered under two names is one module, so its parameters have one place each.
    """
    return _places(net, "_parameters")


def buffer_places(net: nn.Module) -> dict[str, list[str]]:
    """The same for buffers."""
    return _places(net, "_buffers")


def _places(net: nn.Module, kind: str) -> dict[str, list[str]]:
    found: dict[int, list[str]] = {}
    for prefix, module in net.named_modules():
        for key, value in getattr(module, kind).items():
            if value is not None:
                found.setdefault(id(value), []).append(f"{prefix}.{key}" if prefix else key)
    return {names[0]: names for names in found.values()}


@contextmanager
def placed(net: nn.Module, tensors: Mapping[str, Tensor], places: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Tensor]]:
    """Within, `net` computes with these tensors in place of its own parameters and buffers.

    torch's `functional_call` does the same, but for a module under two names: it then puts the tensors back in place of the
    module's own.

    Args:
        tensors: by first name; for parameters real numbers, which are put in place in the parameter's dtype (see `numbers`).
        places: of all of them, as `parameter_places` and `buffer_places` give them.

    Yields:
        A dict that is empty within; afterwards it holds what was in the first place of each tensor at the end, by name: a
        module may have bound its buffer to another tensor.
    """
    slots: list[tuple[str, Tensor, nn.Module, dict[str, Any], str, Any]] = []
    left: dict[str, Tensor] = {}
    for name, value in tensors.items():
        tensor: Tensor | None = None
        for place in places[name]:
            module, key = owner(net, place)
            kind: dict[str, Any] = module._parameters if key in module._parameters else module._buffers
            if tensor is None:
                tensor = as_parameter(value, kind[key]) if kind is module._parameters else value
            slots.append((name, tensor, module, kind, key, kind[key]))
    try:
        for _, tensor, _, kind, key, _ in slots:
            kind[key] = tensor
        yield left
    finally:
        for name, _, module, kind, key, own in reversed(slots):  # so that the first place is the last that is looked at
            left[name] = kind[key]
            kind[key] = own
            if isinstance(module, nn.RNNBase):
                setattr(module, key, own)  # which has it forget the tensors that it put in a list of its own
