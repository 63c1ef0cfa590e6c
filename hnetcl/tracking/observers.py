"""The observers of a run, by name."""

from collections.abc import Sequence
from typing import Any

from hnetcl.registry import given, make
from hnetcl.training import Observer


def observers(names: Sequence[str], **offered: Any) -> list[Observer]:
    """Those with these names, in the order in which they hear of events; close them in the opposite order.

    Args:
        names: of registered observers. Those that look at others come last.
        offered: what an observer may ask for, see `Observer`.

    Raises:
        ArgumentError: there is no observer of that name, or it asks for what is not offered.
    """
    made: list[Observer] = []
    for name in sorted(dict.fromkeys(names), key=lambda name: "others" in given("observer", name)):
        made.append(make("observer", {"name": name}, **offered, others=tuple(made)))
    return made
