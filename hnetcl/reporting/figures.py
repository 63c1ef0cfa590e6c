"""Figures of a comparison: a paper's column wide, in colours that colour-blind readers tell apart."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from hnetcl.reporting.comparison import Comparison, Group
from hnetcl.reporting.numbers import interval
from hnetcl.reporting.runs import RunRecord
from hnetcl.tracking.figures import COLUMN, accuracy_curves, accuracy_matrix, row_statistics, styled

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")  # Okabe & Ito 2008
MARKS = "osD^vP*X"
SAME_SIZE = 1.05  # ratio of compressions up to which a figure of them would say nothing
MOST_LABEL = 34  # letters of a group's name


def run_figures(found: Comparison) -> dict[str, Figure]:
    """By name; those that the runs have the numbers for.

    - methods: the first metric of every group, each run, and the interval of the mean
    - compression: the first metric over compression, where groups differ in it
    - accuracy_matrix, accuracy_curves, row_statistics: of the best group, the mean over its runs, resp. its first run
    - accuracy_over_tasks: the mean accuracy on the tasks so far, of every group
    """
    made: dict[str, Figure] = {}
    if not found.groups or not found.metrics:
        return made
    metric = found.metrics[0]
    made["methods"] = _methods(found, metric)
    compressions = [float(group.of("compression").mean()) for group in found.groups if len(group.of("compression"))]
    if compressions and max(compressions) > SAME_SIZE * min(compressions):
        made["compression"] = _compression(found, metric)
    made["accuracy_over_tasks"] = _over_tasks(found)
    best = max(found.groups, key=lambda group: float(np.mean(group.of(metric))) if len(group.of(metric)) else -math.inf)
    mean = _mean_accuracy(best)
    if mean is not None:
        made["accuracy_matrix"] = accuracy_matrix(torch.from_numpy(mean[1:]), torch.from_numpy(mean[0]))
        made["accuracy_curves"] = accuracy_curves(torch.from_numpy(mean[1:]), torch.from_numpy(mean[0]))
    if statistics := _statistics(best.runs[0]):
        made["row_statistics"] = row_statistics(*statistics)
    return made


@styled
def _methods(found: Comparison, metric: str) -> Figure:
    figure = Figure(figsize=(COLUMN, 0.7 + 0.22 * len(found.groups)), layout="constrained")
    axes = figure.subplots()
    for place, group in enumerate(found.groups):
        values = group.of(metric)
        if not len(values):
            continue
        color = COLORS[place % len(COLORS)]
        low, high = interval(values)
        axes.plot(values, [place] * len(values), ".", color=color, alpha=0.45, markersize=4)
        axes.plot([values.mean()], [place], _mark(place), color=color, markersize=4.5)
        if not math.isnan(low):
            axes.plot([low, high], [place, place], color=color, linewidth=1.6)
    axes.set_yticks(range(len(found.groups)), [_label(found, group) for group in found.groups])
    axes.set_ylim(len(found.groups) - 0.5, -0.5)
    axes.set_xlabel(metric.replace("_", " "))
    axes.grid(axis="x", alpha=0.3, linewidth=0.5)
    return figure


@styled
def _compression(found: Comparison, metric: str) -> Figure:
    figure = Figure(figsize=(COLUMN, 2.2), layout="constrained")
    axes = figure.subplots()
    for place, group in enumerate(found.groups):
        x, y = group.of("compression"), group.of(metric)
        if len(x) and len(y):
            style: Any = {"color": COLORS[place % len(COLORS)], "marker": _mark(place)}
            off = float(y.std(ddof=1)) if len(y) > 1 else 0.0
            axes.errorbar(
                x.mean(), y.mean(), yerr=off, markersize=4, linewidth=1, linestyle="", label=_label(found, group), **style
            )
    axes.set(xlabel="trainable / generated parameters", ylabel=metric.replace("_", " "))
    low, high = axes.get_xlim()
    if low > 0 and high > 10 * low:
        axes.set_xscale("log")
    axes.grid(alpha=0.3, linewidth=0.5)
    _legend(figure, len(found.groups))
    return figure


@styled
def _over_tasks(found: Comparison) -> Figure:
    figure = Figure(figsize=(COLUMN, 2.2), layout="constrained")
    axes = figure.subplots()
    longest = 1
    for place, group in enumerate(found.groups):
        mean = _mean_accuracy(group)
        if mean is None:
            continue
        rows = mean[1:]
        seen = [np.mean(rows[i, : i + 1]) for i in range(len(rows))]
        longest = max(longest, len(seen))
        style: Any = {"color": COLORS[place % len(COLORS)], "marker": _mark(place), "markersize": 3}
        axes.plot(range(1, len(seen) + 1), seen, linewidth=1, label=_label(found, group), **style)
    axes.set(xlabel="tasks trained", ylabel="mean accuracy so far")
    if longest <= 12:
        axes.set_xticks(range(1, longest + 1))
    axes.grid(alpha=0.3, linewidth=0.5)
    _legend(figure, len(found.groups))
    return figure


def _mark(place: int) -> str:
    """Where colours begin anew, marks go on: no two of 64 groups have both in common."""
    return MARKS[(place + place // len(COLORS)) % len(MARKS)]


def _legend(figure: Figure, groups: int) -> None:
    rows = math.ceil(groups / 2)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.13 * rows)
    figure.legend(loc="outside lower center", ncols=2 if groups > 1 else 1, fontsize=5.5, frameon=False, handlelength=1.4)


def _label(found: Comparison, group: Group) -> str:
    """Without dollars, which matplotlib would read as mathematics."""
    text = found.label(group).replace("$", r"\$")
    return text if len(text) <= MOST_LABEL else text[: MOST_LABEL - 1] + "…"


def _mean_accuracy(group: Group) -> np.ndarray | None:
    """R with the untrained row first, the mean over the runs; None where they have not the same tasks."""
    found = [run.accuracy for run in group.runs if run.accuracy is not None]
    if not found or any(each.shape != found[0].shape for each in found):
        return None
    mean: np.ndarray = np.mean(found, axis=0)
    return mean


def _statistics(run: RunRecord) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None:
    tables: Sequence[dict[str, torch.Tensor]] = [
        {
            str(name): torch.tensor([[math.nan if v is None else v for v in row] for row in values], dtype=torch.float64)
            for name, values in run.statistics.get(kind, {}).items()
        }
        for kind in ("distances", "misfits")
    ]
    distances, misfits = tables
    return (distances, misfits) if distances else None
