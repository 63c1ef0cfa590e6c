"""Single steps of a method, on batches that a test draws."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from hnetcl.methods import Inputs, Losses, Run
from hnetcl.model import HyperModel
from hnetcl.tasks import Split, Task, TaskSequence
from hnetcl.tasks.preprocess import Preprocess
from hnetcl.training import TrainingStep

IMAGES = Split(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.arange(2))
TASK = Task(("a", "b"), IMAGES, IMAGES, IMAGES, Preprocess(torch.zeros(1, 1, 1), torch.ones(1, 1, 1)))


def run_of(model: HyperModel, task: int, optimizer: Optimizer, generator: torch.Generator | None = None) -> Run:
    """A run whose data nobody looks at."""
    return Run(model, task, TaskSequence("nothing", (TASK,) * (task + 1)), optimizer, generator or torch.Generator())


def take(step: TrainingStep, run: Run, x: Tensor, y: Tensor) -> tuple[Losses, Inputs]:
    """A batch's losses, and what they were computed from."""
    inputs = step.method.inputs(run, lambda: (x, y))
    return step(run, inputs), inputs
