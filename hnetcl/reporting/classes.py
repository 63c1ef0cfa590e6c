"""Which classes are hard."""

import numpy as np

from hnetcl.reporting.comparison import Comparison, number
from hnetcl.reporting.table import Cell, Table


def class_table(found: Comparison) -> list[Table]:
    """A row per class and a column per group of runs; no table where no run has written down its classes."""
    values: dict[str, dict[int, list[float]]] = {}
    for place, group in enumerate(found.groups):
        for run in group.runs:
            for each in run.classes:
                values.setdefault(each.name, {}).setdefault(place, []).append(each.accuracy)
    places = sorted({place for of_class in values.values() for place in of_class})
    rows = []
    for name, of_class in values.items():
        means = [float(np.mean(of_class[place])) if place in of_class else None for place in places]
        rows.append([Cell(name), *(Cell("" if mean is None else number(mean), mean) for mean in means)])
    note = "accuracy after the last task: mean over runs, and over tasks with a class of that name"
    header = ["class", *(found.label(found.groups[place]) for place in places)]
    return [Table("Classes", header, rows, [note])] if rows else []
