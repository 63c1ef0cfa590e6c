"""Logits of all tasks: `all_tasks`, which is one pass, against a loop over tasks.

Contenders are KIND/BATCH/WAY/one and KIND/BATCH/WAY/loop: the MLP of `train` without a norm (plain) and with batch norm that
keeps a row of statistics per task (norm), in evaluation. Parameters are written at every call (anew), or were before (kept).
"""

from argparse import ArgumentParser, Namespace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from benchmarks import example, inputs, speed
from benchmarks.contenders import Contender, Field
from benchmarks.example import SIDE, Example
from benchmarks.measure import Step
from hnetcl.bn import BatchNormLayer

NORMS = {"plain": None, "norm": BatchNormLayer}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--tasks", type=int, default=20, help="T (default %(default)s)")
    parser.add_argument("--batches", default="1,32,256", help="numbers of images (default %(default)s)")
    example.add_arguments(parser)
    speed.add_arguments(parser)


def field(arguments: Namespace, device: torch.device) -> Field:
    """One pass and a loop for every size of batch.

    Raises:
        ArgumentError: a number is too small.
    """
    inputs.at_least(1, arguments, "tasks", "rounds", "turn")
    sizes = example.example(arguments)
    batches = example.numbers(arguments, "batches", 1)
    contenders = [
        Contender(
            f"{kind}/{batch}/{way}/{passes}",
            partial(step, sizes, arguments.tasks, batch, kind, way == "kept", passes == "one", device),
            f"{kind}/{batch}/{way}/loop",
        )
        for kind, batch, way, passes in product(NORMS, batches, ("anew", "kept"), ("loop", "one"))
    ]
    asked = {"tasks": arguments.tasks, **example.settings(sizes)}
    return Field(contenders, asked, partial(speed.speed, rounds=arguments.rounds, turn=arguments.turn, device=device))


def step(sizes: Example, tasks: int, batch: int, kind: str, kept: bool, in_one: bool, device: torch.device) -> Step:
    """Logits [T, N, K]; models of one kind are alike."""
    torch.manual_seed(0)
    model = sizes.model(tasks, device, NORMS[kind]).eval()
    x, every = torch.randn(batch, 1, SIDE, SIDE, device=device), torch.arange(tasks, device=device)
    with torch.inference_mode():
        together, each = model.hnet(every), [model.hnet(task) for task in range(tasks)]

    @torch.inference_mode()
    def run() -> Tensor:
        if in_one:
            logits: Tensor = model.some_tasks(x, every, together) if kept else model.all_tasks(x)
            return logits
        if kept:
            return torch.stack([model.run(params, x, task) for task, params in enumerate(each)])
        return torch.stack([model(x, task) for task in range(tasks)])

    return run
