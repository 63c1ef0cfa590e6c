"""Mixtures of Gaussians in the plane: a toy that needs no data."""

import math
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt

from hnetcl.errors import ArgumentError
from hnetcl.memory import require
from hnetcl.registry import register
from hnetcl.tasks.points import as_they_are, drawn, points, rounded
from hnetcl.tasks.sequence import TaskSequence
from hnetcl.tasks.task import Split, Task


@register("task", "gaussians")
def gaussians_sequence(
    device: torch.device,
    seed: int = 0,
    *,
    num_tasks: Annotated[int, Ge(1)] = 5,
    classes_per_task: Annotated[int, Ge(2)] = 2,
    modes: Annotated[int, Ge(1)] = 3,
    radius: Annotated[float, Gt(0)] = 2.0,
    std: Annotated[float, Gt(0)] = 0.3,
    train_size: Annotated[int, Ge(2)] = 1000,
    test_size: Annotated[int, Ge(2)] = 1000,
    val_size: Annotated[int, Ge(0)] = 200,
) -> TaskSequence:
    """Every class of a task is a mixture of `modes` Gaussians. The means of all of them lie evenly on a circle, turned by an
    angle of the task's own, and are dealt out to the classes at random: tasks lie in the same place and contradict each other.

    Inputs are points of the plane, float32 [N, 2, 1, 1], and are used as they are.

    Args:
        device: where the points are to be used.
        seed: draws the angles, the dealing and the points.
        modes: Gaussians of each class, all as likely.
        radius: of the circle of means around 0.
        std: of each Gaussian, in both directions.
        train_size, test_size, val_size: points of each task, drawn apart; of each class the same number, or one more.

    Raises:
        ArgumentError: fewer points than classes, or more than memory holds.

    Source: the Gaussians on a circle of Metz et al. 2017 (arXiv:1611.02163) and Che et al. 2017 (arXiv:1612.02136), which
    hypnettorch has too (`gaussian_mixture_data`); here with classes.
    """
    for name, size in (("train_size", train_size), ("test_size", test_size)):
        if size < classes_per_task:
            raise ArgumentError(name, size, f"must be at least {classes_per_task}: a point for each class")
        require(name, size, 24.0 * size * num_tasks)
    require("val_size", val_size, 24.0 * val_size * num_tasks)
    require("num_tasks", num_tasks, 8.0 * num_tasks * num_tasks)  # R
    count = classes_per_task * modes
    require("modes", modes, 32.0 * count * num_tasks)
    classes = tuple(str(k) for k in range(classes_per_task))
    tasks = []
    for t in range(num_tasks):
        random = drawn(seed, "gaussians", t)
        angles = 2 * math.pi / count * (random.random() + random.permutation(count))
        means = rounded(radius * np.stack([np.cos(angles), np.sin(angles)], 1)).reshape(classes_per_task, modes, 2)

        def split(kind: str, size: int, t: int = t, means: np.ndarray = means) -> Split:
            random, labels = drawn(seed, "gaussians", t, kind), np.arange(size) % classes_per_task
            chosen = means[labels, random.integers(modes, size=size)]
            found = chosen + std * random.standard_normal((size, 2))
            return Split(points(found, device), torch.from_numpy(labels).to(device))

        own = split("train", train_size), split("val", val_size), split("test", test_size)
        tasks.append(Task(classes, *own, as_they_are(2, device), {"means": means.tolist()}))
    return TaskSequence("gaussians", tuple(tasks))
