"""How fast contenders are, side by side."""

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median

import torch

from benchmarks.contenders import Contender, Report, build
from benchmarks.measure import Step, in_turn, median_ratio

WARM_UP = 3  # turns


@dataclass(frozen=True)
class Speed:
    """One contender's medians.

    Args:
        name: the contender's.
        base: the contender that it is compared with.
        seconds: of a step.
        per_second: steps.
        times: as fast as the base: the median over rounds of the base's time divided by its own in the same round.
    """

    name: str
    base: str
    seconds: float
    per_second: float
    times: float


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=20, help="turns that each contender takes (default %(default)s)")
    parser.add_argument("--turn", type=int, default=10, help="steps in a row in one turn (default %(default)s)")


def speed(contenders: Sequence[Contender], rounds: int, turn: int, device: torch.device) -> Report:
    """Times contenders in turn. A turn is several steps in a row, so that memory is as near as it is in a training.

    Args:
        contenders: what to measure.
        rounds: turns of each.
        turn: steps in a turn.
        device: where the steps run.
    """
    steps, absent = build(contenders)
    turns = {name: in_a_row(step, turn) for name, step in steps.items()}
    in_turn(turns, WARM_UP, device)
    seconds = in_turn(turns, rounds, device)
    figures = []
    for name, base in ((c.name, c.base or c.name) for c in contenders if c.name in steps):
        own = median(seconds[name]) / turn
        figures.append(Speed(name, base, own, 1 / own, median_ratio(seconds[base], seconds[name])))
    rows = [[f.name, f"{1e3 * f.seconds:.3f}", f"{f.per_second:.0f}", f"{f.times:.2f}"] for f in figures]
    note = "times as fast as the contender that it is compared with, by the median over rounds"
    return Report(["contender", "ms", "per second", "times"], rows, note, [asdict(f) for f in figures], absent)


def in_a_row(step: Step, count: int) -> Callable[[], None]:
    """That many steps as one."""

    def run() -> None:
        for _ in range(count):
            step()

    return run
