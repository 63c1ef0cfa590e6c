"""What a run would lose without its tasks' own statistics: evaluated anew, and kept beside the report."""

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

from hnetcl.config import EvaluationConfig
from hnetcl.errors import ArgumentError
from hnetcl.files import read_file, read_text, write_file
from hnetcl.reporting import DELTAS, RunRecord

KEPT = "delta.json"


def with_deltas(records: Sequence[RunRecord], folder: Path) -> tuple[list[RunRecord], list[str]]:
    """The records with the metrics `DELTAS`: accuracy with other statistics, minus that with each task's own, the task told.

    Args:
        folder: of the report: what was evaluated is kept in its delta.json, by the SHA-256 of the run's model.

    Returns:
        The records, and in words which runs have no delta, and why.

    Raises:
        StorageError: the file can't be written.
    """
    path = folder / KEPT
    kept, made, notes = _kept(path), [], []
    for number, record in enumerate(records, start=1):
        if not record.complete:
            made.append(record)
            continue
        key = hashlib.sha256(read_file(record.path / "model.safetensors")).hexdigest()
        told = record.metrics.get("task_aware", record.metrics["average_accuracy"])
        metrics = dict(record.metrics)
        for name, stats in DELTAS.items():
            place = f"{key} stats={stats}"
            if place not in kept:
                print(f"run {number} of {len(records)}: stats={stats}", file=sys.stderr)
                found = _accuracy(record, stats)
                if isinstance(found, str):
                    notes.append(f"{record.path} has no {name}: {found}")
                    continue
                kept[place] = found
                write_file(path, json.dumps(kept, indent=1).encode())
            metrics[name] = kept[place] - told
        made.append(replace(record, metrics=metrics))
    return made, notes


def _accuracy(record: RunRecord, stats: str) -> float | str:
    """Average accuracy with these statistics; or why there is none."""
    from hnetcl.cli.jobs import evaluate

    asked: dict[str, Any] = {"scenario": "task", "inference": None, "imports": [], "device": "auto", "data": {"root": None}}
    try:
        with redirect_stdout(StringIO()):
            found = evaluate(EvaluationConfig(run=str(record.path), task=None, stats=stats, **asked))
    except ArgumentError as error:
        return str(error)
    return sum(found) / len(found)


def _kept(path: Path) -> dict[str, float]:
    """What was evaluated before; nothing where the file is not whole: then it is evaluated again."""
    try:
        values = json.loads(read_text(path))
    except ValueError:
        return {}
    if not isinstance(values, dict):
        return {}
    return {key: value for key, value in values.items() if type(value) is float and math.isfinite(value)}
