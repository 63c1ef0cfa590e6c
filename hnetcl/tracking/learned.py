"""Pictures of what is learned, of tasks that can be drawn: classes of points of the plane, and functions of a number."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from hnetcl.model import HyperModel
from hnetcl.modes import evaluation_mode
from hnetcl.modules import main_logits
from hnetcl.tasks import TaskSequence
from hnetcl.tracking.figures import COLUMN, TASK_COLORS, name_tasks, styled

GRID = 120  # points along an axis
FINE = 200  # of a function's line
MOST_POINTS = 300  # of a task that are drawn
MOST_TASKS = 12  # the first so many
COLUMNS = 3  # of regions
MARGIN = 0.1  # around the points, as a share of their extent
# Okabe and Ito's colours, which people who are colour blind tell apart; and shapes, for more classes than colours
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = "os^Dv*P"


@dataclass(frozen=True)
class Learned:
    """What is learned of a task.

    Args:
        x: where the model was asked, [M, D].
        outputs: what it says there: classes int64 [M], or values [M].
        points: of the test, [N, D].
        labels: their classes or targets [N].
    """

    x: np.ndarray
    outputs: np.ndarray
    points: np.ndarray
    labels: np.ndarray


@torch.no_grad()
def look(model: HyperModel, sequence: TaskSequence, tasks: int) -> list[Learned]:
    """What the model says of the first tasks, each told, around its test points. The model is left as it is.

    Args:
        sequence: for which `is_drawable` holds.
    """
    found = []
    with evaluation_mode(model):
        for number, task in enumerate(sequence.tasks[: min(tasks, MOST_TASKS)]):
            images, labels = task.test.images[:MOST_POINTS], task.test.labels[:MOST_POINTS]
            flat = task.test.images.flatten(1)
            low, high = flat.amin(0), flat.amax(0)
            margin = MARGIN * (high - low) if flat.shape[1] == 2 else torch.zeros_like(low)
            count = GRID if flat.shape[1] == 2 else FINE
            axes = [torch.linspace(*ends, count, device=flat.device) for ends in zip(low - margin, high + margin, strict=True)]
            x = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1).reshape(-1, flat.shape[1])
            outputs = main_logits(model(task.preprocess(x[:, :, None, None]), number))
            if sequence.loss == "cross_entropy":
                first = sequence.first_output(number)
                outputs = outputs[:, first : first + len(task.classes)].argmax(1)
            else:
                outputs = outputs[:, 0]
            found.append(Learned(*(_plain(each) for each in (x, outputs, images.flatten(1), labels))))
    return found


def _plain(values: Tensor) -> np.ndarray:
    found: np.ndarray = values.cpu().numpy()
    return found


def learned(found: Sequence[Learned]) -> Figure:
    """Regions of classes, or functions, as `look` has found them."""
    return _regions(found) if found[0].x.shape[1] == 2 else _functions(found)


@styled
def _regions(found: Sequence[Learned]) -> Figure:
    """Axes for each task: where a point is taken for which class, and the test points, by colour and shape of their class."""
    columns = min(len(found), COLUMNS)
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(COLUMN, COLUMN / columns * rows + 0.15 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for number, (axes, task) in enumerate(zip(grid, found, strict=False)):
        _region(axes, task)
        axes.set(title=f"task {number}")
        axes.set(xticks=[], yticks=[])
    for axes in grid[len(found) :]:
        axes.set_axis_off()
    return figure


def _region(axes: Axes, task: Learned) -> None:
    classes = int(max(task.outputs.max(), task.labels.max())) + 1
    colors = ListedColormap([COLORS[k % len(COLORS)] for k in range(classes)])
    (left, bottom), (right, top) = task.x.min(0), task.x.max(0)
    axes.imshow(
        task.outputs.reshape(GRID, GRID),
        extent=(left, right, bottom, top),
        origin="lower",
        cmap=colors,
        vmin=-0.5,
        vmax=classes - 0.5,
        alpha=0.35,
        interpolation="nearest",
        aspect="auto",
    )
    for k in range(classes):
        x, y = task.points[task.labels == k].T
        axes.scatter(x, y, s=4, marker=MARKERS[k % len(MARKERS)], color=colors(k), edgecolors="white", linewidths=0.2)


@styled
def _functions(found: Sequence[Learned]) -> Figure:
    """The learned function of each task as a line of its colour, over its test points."""
    figure = Figure(figsize=(COLUMN, 2.3), layout="constrained")
    axes = figure.subplots()
    for number, task in enumerate(found):
        color = TASK_COLORS(number / max(1, len(found) - 1))
        axes.plot(task.points[:, 0], task.labels, ".", color="0.6", markersize=4)
        axes.plot(task.x[:, 0], task.outputs, color=color, linewidth=1.2, label=f"task {number}")
    axes.set(xlabel="x", ylabel="y")
    axes.grid(alpha=0.3, linewidth=0.5)
    name_tasks(figure, axes, len(found))
    return figure
