"""Figures of a run, for the paper."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from hnetcl.training import Observer, TaskEnd

MOST_LAYERS = 8  # batch-norm layers that a figure shows: the first ones
MOST_LABELS = 12  # tasks up to which cells bear their number and curves a legend


def accuracy_matrix(matrix: Tensor, untrained: Tensor) -> Figure:
    """R as an image: a row per trained task, the untrained model's row on top; rows still to come are left white."""
    values = np.vstack([untrained.numpy(), matrix.numpy()])
    rows, columns = values.shape
    figure = Figure(figsize=(1.8 + 0.55 * min(columns, 20), 1.4 + 0.45 * min(rows, 21)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set(xlabel="test accuracy on task", ylabel="after training task")
    if columns <= MOST_LABELS:
        axes.set_xticks(range(columns))
        axes.set_yticks(range(rows), ["init", *map(str, range(columns))])
        for i, j in zip(*np.nonzero(~np.isnan(values)), strict=True):
            color = "black" if values[i, j] > 0.6 else "white"
            axes.text(j, i, f"{values[i, j]:.3f}", ha="center", va="center", color=color, fontsize=7)
    figure.colorbar(image, ax=axes, shrink=0.9)
    return figure


def accuracy_curves(matrix: Tensor, untrained: Tensor) -> Figure:
    """Test accuracy on every task from its own training on, over the number of trained tasks, and their mean."""
    tasks = len(untrained)
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for j in range(tasks):
        axes.plot(range(j + 1, tasks + 1), matrix[j:, j].numpy(), marker=".", linewidth=1, label=f"task {j}")
    mean = [float(matrix[i, : i + 1].mean()) for i in range(tasks)]
    axes.plot(range(1, tasks + 1), mean, color="black", linewidth=2, label="mean")
    axes.set(xlabel="tasks trained", ylabel="test accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if tasks <= MOST_LABELS:
        axes.legend(fontsize=7)
    return figure


def row_statistics(distances: dict[str, Tensor], misfits: dict[str, Tensor]) -> Figure:
    """A row per batch-norm layer: how far the tasks' statistics lie apart, and how far each lies from what its data has now."""
    names = list(distances)[:MOST_LAYERS]
    figure = Figure(figsize=(7, 0.5 + 2.3 * max(1, len(names))), layout="constrained")
    axes = figure.subplots(max(1, len(names)), 2, squeeze=False)
    for (left, right), name in zip(axes, names, strict=False):
        apart, misfit = distances[name].numpy(), misfits[name].numpy()
        image = left.imshow(apart, cmap="magma", aspect="auto", vmin=0)
        left.set(title=f"{name}: distance between rows", xlabel="task", ylabel="task")
        figure.colorbar(image, ax=left, shrink=0.9)
        for j in range(len(misfit)):
            right.plot(range(j + 1, len(misfit) + 1), misfit[j:, j], marker=".", linewidth=1, label=f"task {j}")
        right.set(title=f"{name}: misfit of a row", xlabel="tasks trained", yscale="log")
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.grid(alpha=0.3)
        for part in (left.title, right.title):
            part.set_fontsize(9)
        if len(misfit) <= MOST_LABELS:
            right.legend(fontsize=6)
    return figure


def to_image(figure: Figure) -> np.ndarray:
    """uint8 [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class FigureWriter(Observer):
    """Writes accuracy_matrix.png, accuracy_curves.png and, where layers keep statistics, row_statistics.png after every task.

    Args:
        folder: an existing one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_task_end(self, end: TaskEnd) -> None:
        for draw in (accuracy_matrix, accuracy_curves):
            draw(end.matrix, end.untrained).savefig(self.folder / f"{draw.__name__}.png", dpi=200)
        if end.distances:
            row_statistics(end.distances, end.misfits).savefig(self.folder / f"{row_statistics.__name__}.png", dpi=200)
