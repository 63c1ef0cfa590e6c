"""Who is measured, and what comes out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from benchmarks.measure import Step
from hnetcl.compiling import can_compile
from hnetcl.errors import one_of


class Absent(Exception):  # noqa: N818
    """A contender can't take part; the message tells why."""


def _fits() -> None:
    """Any user's values will do."""


def need_compiler(device: torch.device) -> None:
    """Raises Absent where nothing can be compiled."""
    if not can_compile(device):
        raise Absent("torch.compile does not work here")


@dataclass(frozen=True)
class Contender:
    """One of those compared.

    Args:
        name: how users choose it.
        build: makes the step to measure, or raises Absent.
        base: the contender that its figures are divided by, which takes part wherever this one does; None for none but itself.
        check: raises ArgumentError where it can't be built from what the user said.
    """

    name: str
    build: Callable[[], Step]
    base: str | None = None
    check: Callable[[], None] = _fits


@dataclass(frozen=True)
class Report:
    """What was found out.

    Args:
        header: of the table, which names contenders in its first column.
        rows: of the table.
        note: on the table.
        figures: all there is to know of each contender, for the record.
        absent: why the others could not take part, by name.
    """

    header: list[str]
    rows: list[list[str]]
    note: str
    figures: list[dict[str, Any]]
    absent: dict[str, str]


@dataclass(frozen=True)
class Field:
    """All contenders for one task.

    Args:
        contenders: in the order of the table.
        settings: what the task is, for the record.
        measure: how the contenders are measured.
    """

    contenders: Sequence[Contender]
    settings: dict[str, Any]
    measure: Callable[[Sequence[Contender]], Report]

    def only(self, patterns: Sequence[str]) -> "Field":
        """The contenders whose names match a pattern such as `quaternion/*`, and their bases.

        Raises:
            ArgumentError: a pattern matches none, or a contender can't be built from what the user said.
        """
        names = [c.name for c in self.contenders]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise one_of("only", pattern, names)
        chosen = [c for c in self.contenders if any(fnmatchcase(c.name, pattern) for pattern in patterns)]
        wanted = {name for c in chosen for name in (c.name, c.base)}
        kept = [c for c in self.contenders if c.name in wanted]
        for contender in kept:
            contender.check()
        return replace(self, contenders=kept)


def build(contenders: Sequence[Contender]) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps by name, and why others are absent."""
    steps: dict[str, Step] = {}
    absent: dict[str, str] = {}
    for contender in contenders:
        try:
            steps[contender.name] = contender.build()
        except Absent as reason:
            absent[contender.name] = str(reason)
    return steps, absent
