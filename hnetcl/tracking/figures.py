"""Figures of a run, for the paper: as wide as a column, legible from one task to a hundred, whatever the network's depth."""

import io
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

COLUMN = 3.3  # inches, the width of a column
DPI = 200
STYLE: Any = {  # matplotlib types its keys one by one
    "font.size": 7,
    "axes.titlesize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "pdf.fonttype": 42,  # letters stay letters; publishers refuse type 3
}
MOST_NUMBERS = 8  # tasks up to which the cells of R bear their number
MOST_LABELS = 8  # tasks up to which a legend fits
LOWEST = -1.05  # R^2 that is shown
MOST_DETAIL = 3  # batch-norm layers up to which each is drawn by itself
LAYER_HEIGHT, MOST_HEIGHT = 0.11, 8.0  # inches of a layer's row, and of all rows together
TASK_COLORS = ListedColormap(colormaps["viridis"](np.linspace(0, 0.92, 256)), "tasks")  # without the yellow that paper swallows


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """The same function, drawing in our style."""

    @wraps(draw)
    def drawn(*args: Any) -> Figure:
        with rc_context(STYLE):
            return draw(*args)

    return drawn


@styled
def accuracy_matrix(matrix: Tensor, untrained: Tensor, score: str = "accuracy") -> Figure:
    """R as an image: a row per trained task, the untrained model's row on top; what was not evaluated is left white.

    Args:
        score: what the numbers are. Colours end at 0 and 1; R^2 may lie below.
    """
    values = np.vstack([untrained.numpy(), matrix.numpy()])
    rows, columns = values.shape
    figure = Figure(figsize=(COLUMN, 0.9 + min(0.28 * rows, 2.2)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
    axes.set(xlabel=f"test {score} on task", ylabel="after training task")
    axes.set_xticks(_ticks(columns, 12))
    trained = [task for task in _ticks(columns, 12) if rows <= 20 or task > 0]  # there `init` and 0 would overlap
    axes.set_yticks([0, *(task + 1 for task in trained)], ["init", *map(str, trained)])
    axes.axhline(0.5, color="white", linewidth=1)
    if columns <= MOST_NUMBERS:
        for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
            color = "black" if values[i, j] > 0.6 else "white"
            text = f"{values[i, j]:.3f}"
            axes.text(j, i, text.lstrip("0") if columns > 5 else text, ha="center", va="center", color=color, fontsize=6)
    figure.colorbar(image, ax=axes, aspect=30)
    return figure


@styled
def accuracy_curves(matrix: Tensor, untrained: Tensor, score: str = "accuracy") -> Figure:
    """Test accuracy on every task from its own training on, over the number of trained tasks, and their mean."""
    tasks = len(untrained)
    figure = Figure(figsize=(COLUMN, 2.3), layout="constrained")
    axes = figure.subplots()
    _curves(axes, matrix.numpy())
    mean = [float(matrix[i, : i + 1].mean()) for i in range(tasks)]
    axes.plot(range(1, tasks + 1), mean, color="black", linewidth=1.5, label="mean", marker="." if tasks == 1 else None)
    axes.set(xlabel="tasks trained", ylabel=f"test {score}")
    if axes.get_ylim()[0] < LOWEST:  # R^2 may fall without end
        axes.set_ylim(bottom=LOWEST)
    name_tasks(figure, axes, tasks)
    return figure


@styled
def row_statistics(distances: dict[str, Tensor], misfits: dict[str, Tensor]) -> Figure:
    """How far the tasks' statistics lie apart, and how far each lies from what its data has now, for every batch-norm layer.

    Of few layers every pair of tasks and every time, two columns wide. Of more, a row per layer: each task's newest misfit, and
    the mean distance.
    """
    return (_few_layers if len(distances) <= MOST_DETAIL else _many_layers)(distances, misfits)


def _few_layers(distances: dict[str, Tensor], misfits: dict[str, Tensor]) -> Figure:
    """A row of two pictures per layer."""
    figure = Figure(figsize=(2 * COLUMN, 0.2 + 1.9 * max(1, len(distances))), layout="constrained")
    grid = figure.subplots(max(1, len(distances)), 2, squeeze=False)
    for (left, right), name in zip(grid, distances, strict=False):
        apart, misfit = distances[name].numpy(), misfits[name].numpy()
        image = left.imshow(apart, cmap="magma", aspect="auto", vmin=0, vmax=apart.max() or 1, interpolation="nearest")
        left.set(title=f"{_short(name, 40)}: distance between rows", xlabel="task", ylabel="task")
        left.set_xticks(_ticks(len(apart), 12))
        left.set_yticks(_ticks(len(apart), 12))
        figure.colorbar(image, ax=left, aspect=30)
        _curves(right, misfit)
        right.set(title=f"{_short(name, 40)}: misfit of a row", xlabel="tasks trained")
        if (misfit > 0).any():
            right.set_yscale("log")
        name_tasks(figure, right, len(misfit))
    return figure


def _many_layers(distances: dict[str, Tensor], misfits: dict[str, Tensor]) -> Figure:
    """A heat map with a row per layer, and points beside it that share these rows."""
    names, tasks = list(distances), len(next(iter(distances.values())))
    now = np.stack([misfits[name].numpy()[tasks - 1, :tasks] for name in names])
    mean = [distances[name].sum().item() / max(1, tasks * (tasks - 1)) for name in names]
    height = min(max(LAYER_HEIGHT * len(names), 1.2), MOST_HEIGHT)
    figure = Figure(figsize=(COLUMN, 0.9 + height), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    positive = now[np.isfinite(now) & (now > 0)]
    norm: Normalize | None = LogNorm(positive.min(), positive.max()) if len(positive) and np.ptp(positive) > 0 else None
    image = left.imshow(now, cmap="magma", norm=norm, aspect="auto", interpolation="nearest")
    left.set(title="misfit of a row", xlabel="task")
    left.set_xticks(_ticks(tasks, 6))
    shown = _ticks(len(names), int(height / 0.09))
    left.set_yticks(shown, [_short(names[k], 22) for k in shown], fontsize=5)
    figure.colorbar(image, ax=left, location="bottom", aspect=20, pad=0.15 / height)
    right.plot(mean, range(len(names)), ".", color="black", markersize=3)
    right.set(title="mean distance", xlabel="between rows")
    right.set_xlim(left=0)
    right.tick_params(labelleft=False)
    right.grid(alpha=0.3, linewidth=0.5)
    return figure


def _curves(axes: Axes, values: np.ndarray) -> None:
    """Column j from row j on, over the number of trained tasks, in the task's colour; what was not evaluated leaves a gap."""
    tasks = len(values)
    marker = "." if tasks <= 25 else None
    for j in range(tasks):
        color = TASK_COLORS(j / max(1, tasks - 1))
        alone = marker or ("." if j == tasks - 1 else None)
        axes.plot(
            range(j + 1, tasks + 1), values[j:, j], marker=alone, markersize=3, linewidth=0.8, color=color, label=f"task {j}"
        )
    axes.set_xticks([task + 1 for task in _ticks(tasks, 11)] if tasks <= 11 else [k for k in _ticks(tasks + 1, 11) if k])
    axes.grid(alpha=0.3, linewidth=0.5)


def name_tasks(figure: Figure, axes: Axes, tasks: int) -> None:
    """Says which colour is whose: by a legend beside the axes where it fits, else by a colour bar."""
    if tasks <= MOST_LABELS:
        axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handlelength=1.2)
        return
    colors = ScalarMappable(Normalize(0, tasks - 1), TASK_COLORS)
    figure.colorbar(colors, ax=axes, ticks=_ticks(tasks, 11), label="task", aspect=30)
    if mean := [line for line in axes.lines if line.get_label() == "mean"]:
        axes.legend(handles=mean, fontsize=6, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, frameon=False)


def _ticks(count: int, most: int) -> list[int]:
    """0 and on, below `count`, by steps of 1, 2, 5, 10, 20, 50 ... so that there are at most `most`."""
    steps = (base * 10**power for power in range(10) for base in (1, 2, 5))
    step = next(step for step in steps if -(-count // step) <= max(1, most))
    return list(range(0, count, step))


def _short(name: str, most: int) -> str:
    """A layer's name; of a long one the end, which tells it from its neighbours."""
    return name if len(name) <= most else "…" + name[1 - most :]


def to_image(figure: Figure) -> np.ndarray:
    """uint8 [H, W, 3]."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def to_png(pixels: np.ndarray) -> bytes:
    """The same as a file's content."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", dpi=(DPI, DPI))
    return file.getvalue()


def to_pdf(figure: Figure) -> bytes:
    """The figure as a file's content, without the time, so that equal runs leave equal files."""
    figure.set_layout_engine("none")  # `to_image` has placed everything
    file = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(file, format="pdf", metadata={"CreationDate": None})
    return file.getvalue()
