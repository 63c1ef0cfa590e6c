"""What a module keeps of an evaluation in plain attributes: caches that were filled with one task's weights."""

from typing import Any, NamedTuple

from torch import nn

from hnetcl.modules.held import Holder, holders, items
from hnetcl.modules.places import all_modules

Looked = list[tuple[Holder, list[tuple[Any, Any]]]]
"""All that modules hold things in, and what that was."""


class _Left(NamedTuple):
    """What an evaluation has changed."""

    holder: Holder
    before: list[tuple[Any, Any]]
    after: list[tuple[Any, Any]]


class Caches:
    """Has each evaluation start with the attributes that the one before started with.

    Networks fill caches in evaluation, as attention biases by resolution, and empty them when training goes on. Here one
    evaluation follows another with the weights of another task. So what an evaluation changes in plain attributes, and in
    containers and objects that these hold, can be read after it, and is put back before the next run, unless somebody has
    changed it meanwhile: the cache, and with it the number or flag that says how far it is filled. Training is left as it is.
    """

    def __init__(self) -> None:
        self.left: list[_Left] = []

    def look(self, net: nn.Module) -> Looked:
        """Called before an evaluation."""
        return [(holder, items(holder)) for module in all_modules(net) for holder in holders(module)]

    def settle(self, before: Looked) -> None:
        """Called after it, with what `look` saw."""
        for holder, old in before:
            now = items(holder)
            if not _same(now, old):
                self.left.append(_Left(holder, old, now))

    def reset(self) -> None:
        """Puts back what evaluations have left, the newest first."""
        for holder, old, after in reversed(self.left):
            if isinstance(holder, dict):
                _restore(holder, dict(old), dict(after))
            elif _same(items(holder), after):
                holder.clear()
                if isinstance(holder, list):
                    holder.extend(value for _, value in old)
                else:
                    holder.update(value for _, value in old)
        self.left = []


def _restore(holder: dict[Any, Any], old: dict[Any, Any], after: dict[Any, Any]) -> None:
    missing = object()
    for key in after.keys() | old.keys():
        was, left = old.get(key, missing), after.get(key, missing)
        if was is left or holder.get(key, missing) is not left:
            continue
        if was is missing:
            del holder[key]
        else:
            holder[key] = was


def _same(now: list[tuple[Any, Any]], before: list[tuple[Any, Any]]) -> bool:
    """Whether the same objects are there, under the same keys."""
    both = zip(now, before, strict=False)
    return len(now) == len(before) and all((a is c or (type(a) is int and a == c)) and b is d for (a, b), (c, d) in both)
