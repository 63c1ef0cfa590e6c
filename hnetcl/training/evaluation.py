"""Accuracy of a model on tasks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hnetcl.model import HyperModel
from hnetcl.tasks import Preprocess, Split, TaskSequence


@torch.no_grad()
def accuracy(
    model: HyperModel, task: int, split: Split, preprocess: Preprocess, batch_size: int, stats: int | str | None = None
) -> float:
    """The fraction of a split that the model, told the task, classifies right.

    Args:
        stats: whose row of statistics, or `bn.BATCH` for each batch's own; the task's row where left out.
    """
    training = model.training
    model.eval()
    params = model.hnet(task)
    correct = torch.zeros((), dtype=torch.long, device=split.labels.device)
    for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True):
        logits = model.run(params, preprocess(images), task if stats is None else stats)
        correct += (logits.argmax(1) == labels).sum()
    model.train(training)
    return int(correct) / len(split)


def accuracies(
    model: HyperModel,
    sequence: TaskSequence,
    batch_size: int,
    tasks: Sequence[int] | None = None,
    stats: int | str | None = None,
) -> Tensor:
    """Test accuracy on some tasks, or on all, in float64; the rest as in `accuracy`."""
    chosen = range(len(sequence)) if tasks is None else tasks
    values = [accuracy(model, t, sequence[t].test, sequence[t].preprocess, batch_size, stats) for t in chosen]
    return torch.tensor(values, dtype=torch.float64)
