"""What modules hold in plain attributes: alone, in containers, and in objects that are no modules."""

import sys
from collections.abc import Collection, Iterator
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from torch import Tensor, nn

OWN = frozenset(vars(nn.Module()))  # attributes that every module has
OPAQUE = (Tensor, nn.Module, type, ModuleType, FunctionType)

Holder = dict[Any, Any] | list[Any] | set[Any]


class Held(NamedTuple):
    """Where an object is held a second time.

    Attributes:
        module: the name of the module that leads to it.
        value: the object.
        holder, key: `holder[key]` is the object; None where it can't be replaced: in a tuple or set, or a method of it is held.
    """

    module: str
    value: Any
    holder: Any
    key: Any


def holders(module: nn.Module) -> list[Holder]:
    """The module's `vars`, the dicts, lists and sets that these lead to, and the `vars` of objects that are no modules.

    Objects of the standard library's classes, as loggers, are left out: they lead to what is not the module's.
    """
    return [holder for holder, _ in _walk(module)]


def held(net: nn.Module, wanted: Collection[Any]) -> Iterator[Held]:
    """Where modules of `net` hold these objects, or methods of them, beside the places that torch knows."""
    ids = {id(each) for each in wanted}
    for name, module in net.named_modules():
        for holder, values in _walk(module):
            for key, value, replaceable in values:
                owner = getattr(value, "__self__", None) if not isinstance(value, OPAQUE) else None
                if id(value) in ids and replaceable:
                    yield Held(name, value, holder, key)
                elif id(value) in ids or id(owner) in ids:
                    yield Held(name, value if id(value) in ids else owner, None, None)


def items(holder: Holder) -> list[tuple[Any, Any]]:
    """Keys and values, of a module's `vars` those that not every module has; the keys of a list are its indices, those of a set
    its members.
    """
    if isinstance(holder, dict):
        hidden = OWN if holder.keys() >= OWN else frozenset()
        return [(key, value) for key, value in holder.items() if key not in hidden]
    return list(enumerate(holder)) if isinstance(holder, list) else [(each, each) for each in holder]


def _walk(module: nn.Module) -> Iterator[tuple[Holder, list[tuple[Any, Any, bool]]]]:
    """Every holder with its keys, values, and whether these can be replaced there."""
    todo: list[Any] = [vars(module)]
    seen = {id(todo[0])}
    for holder in todo:  # which grows meanwhile
        values = [(key, value, not isinstance(holder, set)) for key, value in items(holder)]
        if isinstance(module, nn.RNNBase):
            values = [each for each in values if each[0] != "_flat_weights"]  # which `placed` looks after
        for key, value, _ in values:  # which grows, too
            if isinstance(value, tuple | frozenset):
                values += [(key, each, False) for each in value]
            inner = value if isinstance(value, dict | list | set) else _own_vars(value)
            if inner is not None and id(inner) not in seen:
                seen.add(id(inner))
                todo.append(inner)
        yield holder, values


def _own_vars(value: Any) -> dict[str, Any] | None:
    if isinstance(value, OPAQUE) or not hasattr(value, "__dict__"):
        return None
    return vars(value) if type(value).__module__.partition(".")[0] not in sys.stdlib_module_names else None
