"""Runs as two tables: one row per group of runs that differ in the seed alone, and one row per run."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hnetcl.errors import ArgumentError, one_of
from hnetcl.registry import COSTS
from hnetcl.reporting.numbers import interquartile_mean, interval, sign_test, spread
from hnetcl.reporting.runs import RunRecord
from hnetcl.reporting.table import Cell, Table

SAME = (  # keys that don't make another experiment
    "seed",
    "device",
    "resume",
    "imports",
    "observers",
    "optimized_metric",
    "references",
    "run.dir",
    "data.root",
    *(f"trainer.{key}" for key in ("threads", "eval_batch_size", "log_every", "checkpoint_minutes", "statistics", "evaluate")),
)
LOWER_IS_BETTER = (
    *("forgetting", "intransigence", "calibration_error", "negative_log_likelihood", "recognizer_bytes"),
    *(name for name in COSTS if name != "steps_per_second"),
)
METRICS = ("average_accuracy", "forgetting", "task_inference_accuracy", "intransigence", "compression", "seconds")
DELTAS = {
    "batch_statistics_delta": "batch",
    "foreign_row_delta": "0",
}  # metrics that a report measures: `stats` of an evaluation
REFERENCE = "(reference)"


@dataclass(frozen=True)
class Group:
    """Complete runs that differ in the seed alone, as far as the chosen keys tell.

    Args:
        values: of the keys that tell groups apart.
        runs: by seed.
    """

    values: tuple[str, ...]
    runs: Sequence[RunRecord]

    def of(self, metric: str) -> np.ndarray:
        """The metric of all runs that measured it."""
        values = np.array([run.metrics.get(metric, math.nan) for run in self.runs], dtype=np.float64)
        return values[np.isfinite(values)]

    def by_seed(self, metric: str) -> dict[str, float]:
        """Where several runs have a seed, their mean."""
        seeds: dict[str, list[float]] = {}
        for run in self.runs:
            value = run.metrics.get(metric, math.nan)
            if math.isfinite(value):
                seeds.setdefault(shown(run.config.get("seed")), []).append(value)
        return {seed: float(np.mean(values)) for seed, values in seeds.items()}


@dataclass(frozen=True)
class Comparison:
    """What the runs say.

    Args:
        keys: that tell groups apart.
        metrics: that are shown.
        groups: of complete runs.
        table: a row per group; runs: a row per run, whatever became of it.
    """

    keys: Sequence[str]
    metrics: Sequence[str]
    groups: Sequence[Group]
    table: Table
    runs: Table

    def label(self, group: Group) -> str:
        """What a group is called in a figure."""
        return ", ".join(group.values) or "all runs"


def comparison(
    records: Sequence[RunRecord],
    by: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    baseline: Mapping[str, str] | None = None,
) -> Comparison:
    """Groups runs and compares the groups.

    Args:
        by: configuration keys that tell groups apart; None: those in which complete runs differ, but for the seed and the like.
        metrics: names in metrics.json; None: the usual ones that some run has.
        baseline: values of some of the keys: the group that the others are compared with, in the first metric, seed by seed.

    Raises:
        ArgumentError: no run has such a key or metric, or not exactly one group is the baseline.
    """
    complete = _with_references([record for record in records if record.complete])
    known = sorted({key for record in records for key in record.config})
    for key in by or ():
        if key not in known:
            raise one_of("by", key, known)
    measured = sorted({name for record in complete for name in record.metrics})
    for name in metrics or ():
        if complete and name not in measured:
            raise one_of("metrics", name, measured)
    keys = list(by) if by is not None else _differing(complete)
    if by is not None and "method.name" not in by:  # a bound would count among the runs of its values
        complete = [record for record in complete if not _is_reference(record)]
    filled = {name for record in complete for name, value in record.metrics.items() if math.isfinite(value)}
    chosen = list(metrics) if metrics else [name for name in METRICS if name in filled]
    chosen += [name for name in DELTAS if name in filled and name not in chosen]
    groups = _grouped(complete, keys)
    reference = _baseline(groups, keys, baseline) if baseline else None
    return Comparison(keys, chosen, groups, _group_table(groups, keys, chosen, reference), _run_table(records, keys, chosen))


def shown(value: Any) -> str:
    """A configuration value as it is typed."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if value is None or isinstance(value, bool | list | dict) else str(value)


def _with_references(complete: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs and their bounds, and what only both together tell. Bounds that are the same run come once."""
    found, known = [], set()
    for run in complete:
        joint = run.references.get("joint")
        if joint is not None and joint.complete:
            run = replace(run, metrics={**run.metrics, "intransigence": intransigence(run, joint)})
        found.append(run)
        for name, bound in run.references.items():
            same = tuple(sorted((k, shown(v)) for k, v in bound.config.items() if k not in SAME or k == "seed"))
            if bound.complete and same not in known:
                found.append(_as_reference(name, bound))
                known.add(same)
    return found


def _as_reference(name: str, bound: RunRecord) -> RunRecord:
    return replace(bound, config={**bound.config, "method.name": f"{name} {REFERENCE}"})


def _is_reference(record: RunRecord) -> bool:
    return str(record.config.get("method.name")).endswith(REFERENCE)


def intransigence(run: RunRecord, joint: RunRecord) -> float:
    """mean_j (R*[j, j] - R[j, j]), R* of joint training (Chaudhry et al. 2018, definition 4)."""
    assert run.accuracy is not None
    assert joint.accuracy is not None
    own, bound = (np.diagonal(each.accuracy[1:]) for each in (run, joint) if each.accuracy is not None)
    return float((bound - own).mean()) if len(own) == len(bound) else math.nan


def _differing(complete: Sequence[RunRecord]) -> list[str]:
    """The keys in which runs differ: names of parts first. Bounds differ from them in their method's name."""
    values: dict[str, set[str]] = {}
    runs = [record for record in complete if not _is_reference(record)]
    for record in runs:
        for key, value in record.config.items():
            values.setdefault(key, set()).add(shown(value))
    names = {key for key in values if key.endswith(".name")}
    parts = {key.rpartition(".")[0] for key in names if len(values[key]) > 1}
    differing = [key for key, found in values.items() if len(found) > 1 and key not in SAME]
    # What belongs to a part that is another one anyway only repeats its name.
    own = [key for key in differing if key in names or key.rpartition(".")[0] not in parts or _differs_within(runs, key)]
    if len(runs) < len(complete):
        own = list({*own, "method.name"})
    return sorted(own, key=lambda key: (key not in ("method.name", "scenario"), not key.endswith(".name"), key))


def _differs_within(complete: Sequence[RunRecord], key: str) -> bool:
    """Whether runs with the same part differ in one of its keys."""
    part = f"{key.rpartition('.')[0]}.name"
    values: dict[str, set[str]] = {}
    for record in complete:
        if key in record.config:
            values.setdefault(shown(record.config.get(part)), set()).add(shown(record.config[key]))
    return any(len(found) > 1 for found in values.values())


def _grouped(complete: Sequence[RunRecord], keys: Sequence[str]) -> list[Group]:
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in complete:
        values = tuple(shown(record.config[key]) if key in record.config else "" for key in keys)
        groups.setdefault(values, []).append(record)
    return [Group(values, groups[values]) for values in sorted(groups)]


def _baseline(groups: Sequence[Group], keys: Sequence[str], wanted: Mapping[str, str]) -> Group:
    for key in wanted:
        if key not in keys:
            raise one_of("baseline", key, keys)
    found = [group for group in groups if all(group.values[keys.index(key)] == value for key, value in wanted.items())]
    if len(found) != 1:
        told = ",".join(f"{key}={value}" for key, value in wanted.items())
        raise ArgumentError("baseline", told, f"must be one group of the table, but is {len(found)}")
    return found[0]


def _group_table(groups: Sequence[Group], keys: Sequence[str], metrics: Sequence[str], reference: Group | None) -> Table:
    first = metrics[0] if metrics else ""
    header = [
        *keys,
        "runs",
        *metrics,
        *(["IQM", "95 % interval"] if first else []),
        *(["difference", "p"] if reference else []),
    ]
    best = {name: _best(groups, name) for name in metrics}
    least: set[float] = set()
    rows = []
    for group in groups:
        cells = [Cell(value) for value in group.values] + [Cell(str(len(group.runs)), len(group.runs))]
        for name in metrics:
            values = group.of(name)
            cells.append(Cell(_mean(values), _value(values), len(groups) > 1 and group in best[name]))
        if first:
            values = group.of(first)
            low, high = interval(values)
            cells.append(Cell(number(interquartile_mean(values)) if len(values) else ""))
            cells.append(Cell("" if math.isnan(low) else f"{number(low)} to {number(high)}"))
        if reference:
            cells += _difference(group, reference, first, least)
        rows.append(cells)
    notes = [f"mean ± standard deviation over runs; IQM and interval (bootstrap) of {first}; the best mean of a column is bold"]
    if first and any(len(group.by_seed(first)) < len(group.of(first)) for group in groups):
        notes.append(
            "some groups have several runs of one seed: these differ in what does not tell groups apart, or are repetitions"
        )
    if reference:
        pairs = ", ".join(f"{p:.3g}" for p in sorted(least))
        notes.append(
            f"difference and p (exact sign-flip test, two-sided) of {first} to {', '.join(reference.values)}, seed by seed; "
            f"the least p that so few seeds can reach: {pairs or 'none'}"
        )
    return Table("Comparison", header, rows, notes if metrics else ["no run is complete"], left=len(keys))


def _difference(group: Group, reference: Group, metric: str, least: set[float]) -> list[Cell]:
    own, other = group.by_seed(metric), reference.by_seed(metric)
    seeds = sorted(own.keys() & other.keys())
    if group is reference or not seeds:
        return [Cell(""), Cell("")]
    apart = np.array([own[seed] - other[seed] for seed in seeds])
    p, lowest = sign_test(apart)
    least.add(lowest)
    return [Cell(f"{apart.mean():+.4f}", float(apart.mean())), Cell(f"{p:.3g}", p)]


def _best(groups: Sequence[Group], metric: str) -> list[Group]:
    """All groups with the best mean, as it is shown; none where all have it. References and costs of them don't compete."""
    if metric in DELTAS:  # what is lost is neither good nor bad
        return []
    own = [group for group in groups if not any(value.endswith(REFERENCE) for value in group.values)]
    means = [(number(float(group.of(metric).mean())), group) for group in own if len(group.of(metric))]
    if not means:
        return []
    pick = min if metric in LOWER_IS_BETTER else max
    best = pick(float(text) for text, _ in means)
    found = [group for text, group in means if float(text) == best]
    return found if len(found) < len(means) else []  # where all are the same, none is the best


def _run_table(records: Sequence[RunRecord], keys: Sequence[str], metrics: Sequence[str]) -> Table:
    rows = []
    bounds = [(run, [_as_reference(name, bound) for name, bound in run.references.items()]) for run in records]
    for record in (each for run, own in bounds for each in (run, *own)):
        values = [Cell(shown(record.config[key]) if key in record.config else "") for key in (*keys, "seed")]
        numbers = [record.metrics.get(name, math.nan) for name in metrics]
        cells = [Cell("" if math.isnan(value) else number(value), None if math.isnan(value) else value) for value in numbers]
        rows.append([Cell(str(record.path)), Cell(record.status), *values, *cells, Cell(record.reason)])
    counts = {
        status: sum(record.status == status for record in records) for status in ("complete", "unfinished", "failed", "damaged")
    }
    note = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    note += f"; and {len(rows) - len(records)} references of them" if len(rows) > len(records) else ""
    return Table(
        "Runs",
        ["run", "status", *keys, "seed", *metrics, "reason"],
        rows,
        [f"{len(records)} runs: {note}"],
        left=2 + len(keys),
        right=1,
    )


def incomplete(records: Sequence[RunRecord]) -> list[Table]:
    """The runs that no number stands for, with the reason; no table where there is none."""
    rows = [[Cell(str(each.path)), Cell(each.status), Cell(each.reason)] for each in records if not each.complete]
    note = f"{len(rows)} of {len(records)} runs are not complete, and count nowhere above"
    return [Table("Not complete", ["run", "status", "reason"], rows, [note], left=3)] if rows else []


def _mean(values: np.ndarray) -> str:
    if not len(values):
        return ""
    mean, off = float(values.mean()), spread(values)
    return number(mean) + ("" if math.isnan(off) else f" ± {off:.{_digits(mean)}f}")


def _value(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def number(value: float) -> str:
    """Fractions with four digits, larger numbers with as many as say something."""
    return f"{value:.{_digits(value)}f}"


def _digits(value: float) -> int:
    return 4 if abs(value) < 10 else 1 if abs(value) < 10_000 else 0
