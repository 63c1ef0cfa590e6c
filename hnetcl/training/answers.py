"""What a trained model says of each test image."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from hnetcl.model import HyperModel
from hnetcl.tasks import TaskSequence
from hnetcl.training.evaluation import Protocol, See, accuracies


class Predictions(NamedTuple):
    """Of all test images of each task, in their order, on the CPU.

    Args:
        logits: [N, K] of each task, where it is told: only those that come into question then.
        labels: [N] of each task, as these logits are numbered.
        right: bool [N] of each task: which images are classified right, as the scenario counts it.
    """

    logits: list[Tensor]
    labels: list[Tensor]
    right: list[Tensor]


class Answers:
    """Keeps what the evaluation after the last task has computed anyway, so that no image is looked at twice.

    Args:
        protocol: of that evaluation.
    """

    def __init__(self, model: HyperModel, sequence: TaskSequence, protocol: Protocol) -> None:
        self.model, self.sequence, self.protocol = model, sequence, protocol
        self.kept: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def begin(self) -> See:
        """Forgets an evaluation that was broken off; the next one is to call what this returns."""
        self.kept = {}
        return self._see

    def _see(self, task: int, logits: Tensor, labels: Tensor, right: Tensor) -> None:
        if self.protocol.outputs(task + 1, self.sequence.num_classes) is not None:
            logits = logits[:, : len(self.sequence[task].classes)]  # without those that other tasks have more
        self.kept.setdefault(task, []).append((logits.cpu(), labels.cpu(), right.cpu()))

    def predictions(self, tasks: Iterable[int]) -> Predictions:
        """Of the test images of all tasks.

        Args:
            tasks: their numbers, which are evaluated now where this process has not done so.
        """
        if len(self.kept) < len(self.sequence):
            accuracies(self.model, self.sequence, self.protocol, tasks, see=self.begin())
        found = [[torch.cat(parts) for parts in zip(*self.kept[task], strict=True)] for task in sorted(self.kept)]
        return Predictions(*map(list, zip(*found, strict=True)))
