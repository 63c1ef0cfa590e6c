"""What a module keeps of an evaluation in plain attributes: caches that were filled with one task's weights."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from hnetcl.modules.places import all_modules

OWN = frozenset(vars(nn.Module()))  # attributes that every module has

Looked = list[tuple[nn.Module, dict[str, Any], dict[str, Any]]]
"""Of every module its attributes, and the contents of those that are containers."""


class _Left(NamedTuple):
    """An attribute that an evaluation has changed."""

    module: nn.Module
    key: str
    existed: bool
    before: Any
    contents: Any
    after: Any
    contents_after: Any


class Caches:
    """Has each evaluation start with the attributes that the one before started with.

    Networks fill caches in evaluation, as attention biases by resolution, and empty them when training goes on. Here one
    evaluation follows another with the weights of another task. So what an evaluation leaves in attributes that hold tensors
    (alone, or in a dict, list, tuple or set) can be read after it, and is put back before the next run, unless somebody has
    changed it meanwhile. Training is left as it is.
    """

    def __init__(self) -> None:
        self.left: list[_Left] = []

    def look(self, net: nn.Module) -> Looked:
        """Called before an evaluation."""
        return [(module, own := _attributes(module), _contents(own)) for module in all_modules(net)]

    def settle(self, before: Looked) -> None:
        """Called after it, with what `look` saw."""
        for module, old, contents in before:
            now = _attributes(module)
            contents_now = _contents(now)
            for key in old.keys() | now.keys():
                same = key in old and key in now and now[key] is old[key] and _same(contents_now.get(key), contents.get(key))
                if not same and any(_holds_tensor(each) for each in (now.get(key), old.get(key), contents.get(key))):
                    ends = old.get(key), contents.get(key), now.get(key), contents_now.get(key)
                    self.left.append(_Left(module, key, key in old, *ends))

    def reset(self) -> None:
        """Puts back what evaluations have left."""
        for left in self.left:
            own = vars(left.module)
            if own.get(left.key) is not left.after or not _same(_contents(own).get(left.key), left.contents_after):
                continue
            if left.existed:
                _refill(left.before, left.contents)
                own[left.key] = left.before
            else:
                own.pop(left.key, None)
        self.left = []


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key not in OWN}


def _contents(attributes: dict[str, Any]) -> dict[str, Any]:
    """Copies of containers, which may be filled in place."""
    return {key: value.copy() for key, value in attributes.items() if type(value) in (dict, list, set)}


def _same(now: Any, before: Any) -> bool:
    """Whether two copies of a container hold the same objects."""
    if now is None or before is None:
        return now is before
    if isinstance(now, dict):
        return list(now) == list(before) and all(a is b for a, b in zip(now.values(), before.values(), strict=True))
    return len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_tensor(each) for each in value.values())
    if isinstance(value, list | tuple | set):
        return any(_holds_tensor(each) for each in value)
    return isinstance(value, Tensor)


def _refill(container: Any, contents: Any) -> None:
    if isinstance(container, list):
        container[:] = contents
    elif contents is not None:
        container.clear()
        container.update(contents)
