"""Single steps of a method, on batches that a test draws."""

from typing import cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from hnetcl.methods import Inputs, Losses, Run
from hnetcl.model import HyperModel
from hnetcl.tasks import Task
from hnetcl.training import TrainingStep


def run_of(model: HyperModel, task: int, optimizer: Optimizer, generator: torch.Generator | None = None) -> Run:
    """A run that has no data."""
    return Run(model, task, cast(Task, None), optimizer, generator or torch.Generator())


def take(step: TrainingStep, run: Run, x: Tensor, y: Tensor) -> tuple[Losses, Inputs]:
    """A batch's losses, and what they were computed from."""
    inputs = step.method.inputs(run, lambda: (x, y))
    return step(run, inputs), inputs
