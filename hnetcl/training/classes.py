"""How much of each class a trained model classifies right."""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

from hnetcl.files import read_text
from hnetcl.tasks import TaskSequence
from hnetcl.training.answers import Predictions
from hnetcl.training.rundir import RunDirectory


class ClassAccuracy(NamedTuple):
    """Of one class of one task, after the last task.

    Args:
        task: its number.
        name: of the class.
        images: of it, among the task's test images.
        accuracy: the fraction of these that are classified right, as the scenario counts it.
        task_aware: the same where the task is told.
    """

    task: int
    name: str
    images: int
    accuracy: float
    task_aware: float


HEADER = ("task", "class", *ClassAccuracy._fields[2:])


def class_accuracies(sequence: TaskSequence, predictions: Predictions) -> list[ClassAccuracy]:
    """Of all classes, task after task."""
    found = []
    for number, (task, logits, labels, right) in enumerate(zip(sequence.tasks, *predictions, strict=True)):
        size = len(task.classes)
        told = logits.argmax(1) == labels
        counts = (labels[chosen].bincount(minlength=size).tolist() for chosen in (labels >= 0, right, told))
        for name, images, own, aware in zip(task.classes, *counts, strict=True):
            found.append(ClassAccuracy(number, name, images, own / images, aware / images))  # every class has test images
    return found


def write_classes(directory: RunDirectory, classes: Sequence[ClassAccuracy]) -> None:
    """A row for each class, as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([HEADER, *classes])
    directory.write_text(directory.classes, file.getvalue())


def read_classes(directory: RunDirectory) -> list[ClassAccuracy]:
    """What `write_classes` wrote; nothing where there is no such file, for earlier versions wrote none.

    Raises:
        ValueError: it is damaged.
    """
    if not directory.classes.exists():
        return []
    try:
        header, *rows = csv.reader(io.StringIO(read_text(directory.classes)))
        found = [ClassAccuracy(int(t), name, int(n), float(own), float(aware)) for t, name, n, own, aware in rows]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{directory.classes.name} is damaged ({error})") from error
    if tuple(header) != HEADER or not all(0 <= value <= 1 for each in found for value in each[3:]):
        raise ValueError(f"{directory.classes.name} is damaged (no accuracies of classes)")
    return found
