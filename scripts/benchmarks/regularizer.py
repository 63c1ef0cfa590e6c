"""What the output regularizer costs as tasks become many: time and memory of a training step.

Contenders are TARGETS/SAMPLE/TASKS: targets stored or online, all old tasks or --sample of them at a step, and each number of
--tasks, of which the last one is trained; ratios are to the first of these numbers. The networks are those of `train`.

Memory is what grows with the tasks: the bytes that the method holds between steps (targets, or the older hypernetwork), and the
highest point of torch's allocator within a step above what was there before it (activations, gradients, what is written for old
tasks). Weights and optimizer state, which are there without the method too, would only draw the ratios towards 1.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch

from benchmarks import example, inputs, speed
from benchmarks.contenders import Contender, Field, Report, build
from benchmarks.example import BETA, Example
from benchmarks.measure import in_turn, median_ratio, peak_bytes
from benchmarks.step import OurStep
from hnetcl.methods.output_regularizer import OutputRegularizer
from hnetcl.registry import options, words

TARGETS = words(options("method", "output_regularizer")["targets"].type)


@dataclass(frozen=True)
class Cost:
    """One contender's medians.

    Args:
        name: the contender's.
        base: the contender with the first number of tasks.
        seconds: of a step.
        ratio: of that to the base's, the median over rounds.
        penalty: seconds of the penalty and its gradients alone.
        penalty_ratio: of that to the base's.
        held: bytes of the method between steps.
        peak: bytes at the highest point of a step above those before it.
        memory_ratio: of the sum of both to the base's.
    """

    name: str
    base: str
    seconds: float
    ratio: float
    penalty: float
    penalty_ratio: float
    held: int
    peak: int
    memory_ratio: float


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--tasks", default="10,100", help="numbers of tasks (default %(default)s)")
    parser.add_argument("--sample", type=int, default=8, help="old tasks at a step (default %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images in a step (default %(default)s)")
    example.add_arguments(parser)
    speed.add_arguments(parser)


def field(arguments: Namespace, device: torch.device) -> Field:
    """Both kinds of targets, all old tasks and some, for every number of tasks.

    Raises:
        ArgumentError: a number is too small.
    """
    inputs.at_least(1, arguments, "sample", "batch", "rounds", "turn")
    numbers, sizes = example.numbers(arguments, "tasks", 2), example.example(arguments)
    contenders = [
        Contender(
            f"{targets}/{sample or 'all'}/{tasks}",
            partial(training, sizes, tasks, sample, targets, arguments.batch, device),
            f"{targets}/{sample or 'all'}/{numbers[0]}",
        )
        for targets, sample, tasks in product(TARGETS, (None, arguments.sample), numbers)
    ]
    asked = {name: getattr(arguments, name) for name in ("tasks", "sample", "batch")} | example.settings(sizes)
    measure_all = partial(measure, rounds=arguments.rounds, turn=arguments.turn, device=device)
    return Field(contenders, asked, measure_all)


def training(sizes: Example, tasks: int, sample: int | None, targets: Any, batch: int, device: torch.device) -> OurStep:
    """Of the last task."""
    method, batches = OutputRegularizer(beta=BETA, sample=sample, targets=targets), example.batches(batch, device)
    return OurStep(sizes.model(tasks, device), method, example.sequence(batches, tasks), batches)


def penalty(step: OurStep) -> None:
    """The penalty's part of a step, its gradients included."""
    found = regularizer(step).penalty(step.model.hnet)
    if found is not None:
        found.backward()


def regularizer(step: OurStep) -> OutputRegularizer:
    """The method of a step."""
    assert isinstance(step.method, OutputRegularizer)
    return step.method


def held_bytes(method: OutputRegularizer) -> int:
    """Of the tensors that the method holds between steps; a storage counts once."""
    tensors = [] if method.tasks is None else [method.tasks]
    if method.record is not None:
        tensors += [*method.record.by_task, *method.record.common]
    if method.snapshot is not None:
        tensors += [*method.snapshot.parameters(), *method.snapshot.buffers()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def measure(contenders: Sequence[Contender], rounds: int, turn: int, device: torch.device) -> Report:
    """Memory one by one, then time in turn."""
    steps, absent = build(contenders)
    trainings = {name: step for name, step in steps.items() if isinstance(step, OurStep)}
    turns = {name: speed.in_a_row(step, turn) for name, step in trainings.items()}
    penalties = {name: speed.in_a_row(partial(penalty, step), turn) for name, step in trainings.items()}
    in_turn(turns, 1, device)
    held = {name: held_bytes(regularizer(step)) for name, step in trainings.items()}
    peak = {name: peak_bytes(step, device) for name, step in trainings.items()}
    whole, part = in_turn(turns, rounds, device), in_turn(penalties, rounds, device)
    figures = [
        Cost(
            name,
            base,
            median(whole[name]) / turn,
            median_ratio(whole[name], whole[base]),
            median(part[name]) / turn,
            median_ratio(part[name], part[base]),
            held[name],
            peak[name],
            (held[name] + peak[name]) / (held[base] + peak[base]),
        )
        for name, base in ((c.name, c.base or c.name) for c in contenders)
    ]
    header = ["targets/sample/tasks", "step, ms", "ratio", "penalty, ms", "ratio", "held, MB", "peak, MB", "ratio"]
    note = "ratios are to the first number of tasks; memory is what the method holds and a step's peak, by torch's allocator"
    return Report(header, [_row(f) for f in figures], note, [asdict(f) for f in figures], absent)


def _row(f: Cost) -> list[str]:
    times = f"{1e3 * f.seconds:.3f}", f"{f.ratio:.2f}", f"{1e3 * f.penalty:.3f}", f"{f.penalty_ratio:.2f}"
    return [f.name, *times, f"{f.held / 1e6:.2f}", f"{f.peak / 1e6:.2f}", f"{f.memory_ratio:.2f}"]
