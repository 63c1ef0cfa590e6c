"""Learning-rate schedules: the rate of a step, as a multiple of the optimizer's own. Each is run through once per task."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

from annotated_types import Gt, Len, Lt

from hnetcl.errors import ArgumentError

Schedule = Literal["constant", "cosine", "linear", "step"]
Milestones = Annotated[list[Annotated[float, Gt(0), Lt(1)]], Len(1)] | None
Factor = Annotated[float, Gt(0), Lt(1)] | None
Curve = Callable[[float], float]
"""The share of a task's steps that are done, from 0 to 1 -> the factor of the learning rate."""

SCHEDULES: dict[str, Curve] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
}
MILESTONES, FACTOR = (0.5, 0.75), 0.1  # of "step"


def curve(schedule: Schedule, milestones: Sequence[float] | None = None, factor: float | None = None) -> Curve:
    """A schedule as a function.

    Args:
        schedule: "constant"; "cosine" and "linear" fall to zero; "step" falls at every milestone.
        milestones: shares of a task's steps, rising; None: `MILESTONES`.
        factor: of each fall; None: `FACTOR`.

    Raises:
        ArgumentError: milestones that do not rise, or what would go unused.

    Sources: Loshchilov & Hutter 2017 (arXiv:1608.03983), equation 5, without restarts; He et al. 2016 (arXiv:1512.03385),
    section 4.2, whose CIFAR networks fall to a tenth after half and three quarters of the steps.
    """
    if schedule != "step":
        for name, value in (("milestones", milestones), ("factor", factor)):
            if value is not None:
                raise ArgumentError(name, value, f"goes unused with schedule={schedule}; allowed with schedule=step")
        return SCHEDULES[schedule]
    marks, fall = milestones or MILESTONES, FACTOR if factor is None else factor
    if any(a >= b for a, b in pairwise(marks)):
        raise ArgumentError("milestones", list(marks), "must rise")
    return lambda done: fall ** sum(done >= mark for mark in marks)
