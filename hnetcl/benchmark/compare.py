"""Contenders measured beside each other, and what came out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from statistics import median
from typing import Any

import torch

from hnetcl.benchmark.measure import Step, in_turn, median_ratio, peak_bytes, saved_bytes
from hnetcl.errors import one_of

WARM_UP = 3  # calls; the first may compile


class Absent(Exception):  # noqa: N818
    """A contender can't take part; the message tells why."""


@dataclass(frozen=True)
class Contender:
    """One of those compared.

    Args:
        name: how users choose it.
        build: makes the step to measure, or raises Absent.
    """

    name: str
    build: Callable[[], Step]


@dataclass(frozen=True)
class Field:
    """All contenders for one task.

    Args:
        contenders: the first is the base that the times of all are divided by.
        unit_bytes: the size of the input; memory is told in multiples of it.
        settings: what the task is, for the record.
    """

    contenders: Sequence[Contender]
    unit_bytes: int
    settings: dict[str, Any]

    def only(self, patterns: Sequence[str]) -> "Field":
        """The base, and the contenders whose names match a pattern such as `quaternion/*`.

        Raises:
            ArgumentError: a pattern matches none.
        """
        names = [c.name for c in self.contenders]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise one_of("only", pattern, names)
        base, *others = self.contenders
        return replace(self, contenders=[base, *(c for c in others if any(fnmatchcase(c.name, p) for p in patterns))])

    def build(self) -> tuple[dict[str, Step], dict[str, str]]:
        """The steps of all contenders that can take part, and why the others can't.

        Raises:
            ArgumentError: one can't be built from what the user said.
        """
        steps, absent = {}, {}
        for contender in self.contenders:
            try:
                steps[contender.name] = contender.build()
            except Absent as reason:
                absent[contender.name] = str(reason)
        return steps, absent


@dataclass(frozen=True)
class Figures:
    """One contender's medians.

    Args:
        name: the contender's.
        seconds: the median over rounds.
        ratio: the median over rounds of the time divided by the base's in the same round.
        saved: bytes saved for backward, in inputs.
        peak: the highest point of allocated memory above that before the step, in inputs.
    """

    name: str
    seconds: float
    ratio: float
    saved: float
    peak: float


def compare(steps: Mapping[str, Step], unit_bytes: int, rounds: int, device: torch.device) -> list[Figures]:
    """Measures memory one by one, then time in turn; the first step is the base.

    Args:
        steps: what to measure, by name.
        unit_bytes: the size of the input.
        rounds: times that each step is timed.
        device: where the steps run.
    """
    memory = {}
    for name, step in steps.items():
        for _ in range(WARM_UP):
            step()
        memory[name] = saved_bytes(step) / unit_bytes, peak_bytes(step, device) / unit_bytes
    seconds = in_turn(steps, rounds, device)
    base = next(iter(seconds.values()))
    return [Figures(name, median(s), median_ratio(s, base), *memory[name]) for name, s in seconds.items()]
