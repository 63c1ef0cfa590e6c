"""Numbers, tables and figures of a report, of runs that are made up."""

import csv
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnetcl.registry import COSTS
from hnetcl.reporting import class_table, comparison, page, run_figures
from hnetcl.reporting.numbers import interquartile_mean, interval, sign_test, spread
from hnetcl.reporting.runs import RunRecord
from hnetcl.reporting.table import Cell, Table
from hnetcl.training import ClassAccuracy


def record(seed: int, accuracy: float, **config: Any) -> RunRecord:
    metrics = {"average_accuracy": accuracy, "forgetting": 1 - accuracy}
    return RunRecord(Path(f"{config}{seed}"), "complete", "", {"seed": seed, **config}, metrics, np.eye(3)[:, :2])


def test_groups_are_what_runs_differ_in_but_for_the_seed() -> None:
    """Keys of a part that only repeat its name are left out; all that is best is bold, for costs the lowest."""
    runs = [record(s, 0.5 + 0.01 * s, **{"method.name": "ewc", "method.lambda_": 10}) for s in range(3)]
    runs += [record(s, 0.7, **{"method.name": "si", "method.c": c}) for s in range(3) for c in (1, 2)]
    found = comparison(runs)
    assert found.keys == ["method.name", "method.c"]
    assert [group.values for group in found.groups] == [("ewc", ""), ("si", "1"), ("si", "2")]
    assert [[cell.bold for cell in row[3:5]] for row in found.table.rows] == [[False, False], [True, True], [True, True]]
    together = comparison(runs, by=["method.name"])
    assert [len(group.runs) for group in together.groups] == [3, 6]
    assert set(run_figures(found)) == {"methods", "accuracy_over_tasks", "accuracy_matrix", "accuracy_curves"}


def test_classes_of_groups_stand_beside_each_other() -> None:
    """The mean over runs and over tasks with a class of that name; runs of earlier versions have none."""
    runs = [record(s, 0.5, **{"method.name": name}) for name in ("ewc", "old", "si") for s in range(2)]
    assert class_table(comparison(runs)) == []
    for place, values in ((0, [0.2, 0.4]), (1, [0.6, 0.8]), (4, [1.0, 1.0])):
        classes = [ClassAccuracy(task, "cat", 5, value, 1.0) for task, value in enumerate(values)]
        runs[place] = replace(runs[place], classes=[*classes, ClassAccuracy(1, "dog", 5, 0.25 * place, 1.0)])
    (table,) = class_table(comparison(runs))
    assert table.header == ["class", "ewc", "si"]
    assert [[cell.text for cell in row] for row in table.rows] == [["cat", "0.5000", "1.0000"], ["dog", "0.1250", "1.0000"]]


def test_costs_and_errors_are_best_where_they_are_low() -> None:
    names = [*COSTS, "calibration_error", "learning_accuracy"]
    runs = [record(0, 0.5, **{"method.name": name}) for name in ("a", "b")]
    runs = [replace(run, metrics=dict.fromkeys(names, value)) for run, value in zip(runs, (1, 2), strict=True)]
    table = comparison(runs, metrics=names).table
    bold = {name: [row[table.header.index(name)].bold for row in table.rows] for name in names}
    assert [name for name in names if bold[name] == [False, True]] == ["steps_per_second", "learning_accuracy"]
    assert sum(each == [True, False] for each in bold.values()) == len(names) - 2


def test_references_stand_beside_their_run() -> None:
    joint = record(0, 0.9, **{"method.name": "joint"})
    run = record(0, 0.7, **{"method.name": "ewc"})
    matrix = np.array([[0.0, 0.0], [0.8, 0.0], [0.8, 0.6]])
    bound = RunRecord(joint.path, "complete", "", joint.config, joint.metrics, np.array([[0.0, 0.0], [0.9, 0.0], [0.9, 0.9]]))
    both = RunRecord(run.path, "complete", "", run.config, run.metrics, matrix, references={"joint": bound})
    found = comparison([both])
    assert [group.values for group in found.groups] == [("ewc",), ("joint (reference)",)]
    assert found.groups[0].of("intransigence") == pytest.approx([(0.1 + 0.3) / 2])
    other = RunRecord(
        Path("other"), "complete", "", {**run.config, "method.name": "si"}, run.metrics, matrix, references=both.references
    )
    found = comparison([both, other])
    assert [(*group.values, len(group.runs)) for group in found.groups] == [("ewc", 1), ("joint (reference)", 1), ("si", 1)]
    assert [row[2].text for row in found.runs.rows] == ["ewc", "joint (reference)", "si", "joint (reference)"]
    assert found.runs.notes == ["2 runs: 2 complete; and 2 references of them"]
    assert [len(group.runs) for group in comparison([both, other], by=["seed"]).groups] == [2]  # no bound among the runs


def test_numbers_are_those_of_the_papers() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 100.0])
    assert interquartile_mean(values) == 4.5
    assert interquartile_mean(np.array([1.0, 2.0, 9.0])) == pytest.approx((1 + 4 * 2 + 9) / 6)
    assert spread(values) == pytest.approx(values.std(ddof=1))
    low, high = interval(values)
    assert low < values.mean() < high
    assert interval(values) == (low, high)
    assert all(math.isnan(each) for each in interval(values[:1]))
    assert sign_test(np.array([1.0, 2.0, 3.0])) == (0.25, 0.25)  # three seeds can reach no less
    assert sign_test(np.array([1.0, -1.0])) == (1.0, 0.5)
    p, least = sign_test(np.full(20, 0.1))
    assert p == least == 2 / 2000


HOSTILE = "<script>|a_b*&%$#{}~^\\\x1b[31m\nx"


def test_names_are_text_in_every_format() -> None:
    table = Table(HOSTILE, [HOSTILE, "n"], [[Cell(HOSTILE, bold=True), Cell("1", 1)]], [HOSTILE])
    for text in (table.terminal(), table.markdown(), table.latex()):
        assert "\x1b" not in text
    assert len(table.latex().splitlines()) == 9
    assert "<script>" not in table.markdown()
    assert "<script>" not in page(HOSTILE, [table], {HOSTILE: b""}, [record(0, 1.0)])
    assert list(csv.reader(io.StringIO(table.csv())))[1] == [HOSTILE, "1"]


def test_figures_of_one_run_without_statistics() -> None:
    found = comparison([record(0, 0.7, **{"method.name": "$x$"})])
    figures = run_figures(found)
    from hnetcl.tracking.figures import to_image

    assert all(to_image(figure).shape[2] == 3 for figure in figures.values())
