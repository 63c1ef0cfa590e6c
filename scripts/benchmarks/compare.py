"""Time and memory of contenders side by side, and their ratios to what each is compared with."""

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

import torch

from benchmarks.contenders import Contender, Report, build
from benchmarks.measure import in_turn, median_ratio, peak_bytes, saved_bytes

WARM_UP = 3  # calls; the first may compile


@dataclass(frozen=True)
class Figures:
    """One contender's medians.

    Args:
        name: the contender's.
        base: the contender that the ratios are to.
        seconds: the median over rounds.
        ratio: the median over rounds of the time divided by the base's in the same round.
        saved: bytes saved for backward, in inputs.
        saved_ratio: the same, divided by the base's.
        peak: the highest point of allocated memory above that before the step, in inputs.
        peak_ratio: the same, divided by the base's.
    """

    name: str
    base: str
    seconds: float
    ratio: float
    saved: float
    saved_ratio: float
    peak: float
    peak_ratio: float


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=20, help="times that each contender is timed (default %(default)s)")


def compare(
    contenders: Sequence[Contender], unit_bytes: int, rounds: int, device: torch.device, base_name: str = "base"
) -> Report:
    """Measures memory one by one, then time in turn.

    Args:
        contenders: what to measure.
        unit_bytes: the size of the input; memory is told in multiples of it.
        rounds: times that each step is timed.
        device: where the steps run.
        base_name: of the bases in the table.
    """
    steps, absent = build(contenders)
    saved, peak = {}, {}
    for name, step in steps.items():
        for _ in range(WARM_UP):
            step()
        saved[name] = saved_bytes(step) / unit_bytes
        peak[name] = peak_bytes(step, device) / unit_bytes
    seconds = in_turn(steps, rounds, device)

    bases = {c.name: c.base or c.name for c in contenders if c.name in steps}
    figures = [
        Figures(
            name,
            base,
            median(seconds[name]),
            median_ratio(seconds[name], seconds[base]),
            saved[name],
            saved[name] / saved[base],
            peak[name],
            peak[name] / peak[base],
        )
        for name, base in bases.items()
    ]
    header = ["contender", "ms", f"x {base_name}", "saved", f"x {base_name}", "peak", f"x {base_name}"]
    note = f"saved for backward, and at the peak above what was there before: in inputs of {unit_bytes} bytes"
    return Report(header, [_row(f) for f in figures], note, [asdict(f) for f in figures], absent)


def _row(f: Figures) -> list[str]:
    numbers = f.ratio, f.saved, f.saved_ratio, f.peak, f.peak_ratio
    return [f.name, f"{1e3 * f.seconds:.3f}", *(f"{number:.2f}" for number in numbers)]
