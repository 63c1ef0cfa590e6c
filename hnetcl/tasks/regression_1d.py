"""Polynomials on neighbouring intervals: a regression that needs no data."""

from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge

from hnetcl.memory import require
from hnetcl.registry import register
from hnetcl.tasks.points import as_they_are, drawn, points, targets
from hnetcl.tasks.sequence import TaskSequence
from hnetcl.tasks.task import Split, Task

APART = 3.0  # between the middles of neighbouring intervals, which are from 1 below to 1 above


@register("task", "regression_1d")
def regression_1d_sequence(
    device: torch.device,
    seed: int = 0,
    *,
    num_tasks: Annotated[int, Ge(1)] = 3,
    noise: Annotated[float, Ge(0)] = 0.05,
    train_size: Annotated[int, Ge(2)] = 100,
    test_size: Annotated[int, Ge(2)] = 50,
    val_size: Annotated[int, Ge(0)] = 50,
) -> TaskSequence:
    r"""Task t = 1, 2, ... is a polynomial of degree t in u = x - c_t, c_t = 3 (t - 2), for u from -1 to 1:

    .. math:: y = u^t \text{ for odd } t, \quad y = 2 u^t - 1 \text{ for even } t

    so that the first three are x + 3 on [-4, -2], 2 x^2 - 1 on [-1, 1] and (x - 3)^3 on [2, 4]. Training inputs are uniform,
    their targets have Gaussian noise; test inputs are a grid from end to end, their targets have none. Inputs are
    float32 [N, 1, 1, 1], and are used as they are.

    Args:
        device: where the points are to be used.
        seed: draws inputs and noise.
        noise: its standard deviation.
        train_size, test_size: points of each task.
        val_size: further points of each task, drawn like those for training.

    Raises:
        ArgumentError: more points than memory holds.

    Source: von Oswald et al. 2020 (arXiv:1906.00695), section 4.1; the functions, intervals, noise and numbers of points of
    their public code (hypercl, `toy_example/train_utils.py`). More tasks than three go on in the same way.
    """
    for name, size in (("train_size", train_size), ("test_size", test_size), ("val_size", val_size)):
        require(name, size, 24.0 * size * num_tasks)
    require("num_tasks", num_tasks, 8.0 * num_tasks * num_tasks)  # R
    tasks = []
    for t in range(num_tasks):
        centre = APART * (t - 1)

        def split(kind: str, size: int, t: int = t, centre: float = centre) -> Split:
            random = drawn(seed, "regression_1d", t, kind)
            u = np.linspace(-1, 1, size) if kind == "test" else random.uniform(-1, 1, size)
            y = polynomial(t, u) + (0.0 if kind == "test" else noise * random.standard_normal(size))
            return Split(points(centre + u[:, None], device), targets(y, device))

        own = split("train", train_size), split("val", val_size), split("test", test_size)
        tasks.append(Task(("y",), *own, as_they_are(1, device), {"from": centre - 1, "to": centre + 1}))
    return TaskSequence("regression_1d", tuple(tasks), loss="mean_squared_error")


def polynomial(task: int, u: np.ndarray) -> np.ndarray:
    """The function of a task, counted from 0, at u [N] from -1 to 1."""
    power = u ** (task + 1)
    return power if task % 2 == 0 else 2 * power - 1
