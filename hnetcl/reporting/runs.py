"""What is found below some folders: every run, whatever became of it."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hnetcl.config import CHOSEN, group_options
from hnetcl.errors import ArgumentError, one_line
from hnetcl.files import REFERENCES, REFUSED_JOBS, read_text
from hnetcl.registry import names
from hnetcl.training import ClassAccuracy, RunDirectory, read_classes

BEGINS, ENDED = " tasks, on ", "the run ended early"  # in lines of a run's log: that it was started, that an error has ended it
DEEPEST = 200  # folders below one that was named
MULTIRUN = "multirun.yaml"  # what Hydra writes into the folder of a multirun


@dataclass(frozen=True)
class RunRecord:
    """A run as its directory tells it.

    Args:
        path: of its directory.
        status: "complete", "unfinished", "failed" or "damaged".
        reason: of a status that is not "complete", in one line.
        config: its configuration by `group.key`.
        metrics: as in metrics.json; empty where the run is not complete.
        accuracy: R with the untrained model's row first [T + 1, T], in float64, NaN where nothing was measured; or None.
        statistics: what statistics.json holds.
        classes: what classes.csv holds; empty where an earlier version made the run.
        command: that started the run first; empty where nobody knows.
        versions: by package, of that start.
        references: the run's bounds, by method.
    """

    path: Path
    status: str
    reason: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    accuracy: np.ndarray | None = None
    statistics: Mapping[str, Any] = field(default_factory=dict)
    classes: Sequence[ClassAccuracy] = ()
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    references: Mapping[str, "RunRecord"] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return self.status == "complete"


def find_runs(folders: Sequence[str | Path], read_config: Any) -> list[RunRecord]:
    """All runs at and below some folders, in the order of their paths; each once. Links are not followed.

    Args:
        read_config: the path of a config.yaml -> its values.

    Raises:
        ArgumentError: a folder is not there, or there is no run.
    """
    found: dict[Path, RunRecord] = {}
    for folder in folders:
        top = Path(folder).expanduser()
        if not top.is_dir():
            raise ArgumentError("DIR", str(folder), "there is no such folder")
        places = _places(top)
        for path in places["runs"]:
            found.setdefault(path.resolve(), _read(RunDirectory(path), read_config))
        for path in places["refused"]:
            for record in {record.path: record for record in _refused(path)}.values():  # the newest of each job
                found.setdefault(record.path.resolve(), record)
        for path in places["empty"]:
            reason = "there is no config.yaml: the job has not begun, or was killed before that"
            found.setdefault(path.resolve(), RunRecord(path, "unfinished", reason))
        for path in places["closed"]:
            found.setdefault(path.resolve(), RunRecord(path, "damaged", "the folder can't be read"))
    if not found:
        raise ArgumentError("DIR", ", ".join(map(str, folders)), "there is no run at or below it (no config.yaml)")
    return list(found.values())


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as `group.key`."""
    made: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            made |= flat(value, f"{prefix}{key}.")
        else:
            made[f"{prefix}{key}"] = value
    return made


def _places(top: Path) -> dict[str, list[Path]]:
    """What lies below a folder, sorted; references of runs are not among it.

    Returns:
        `runs`: directories of runs; `refused`: files that tell of refused jobs; `empty`: folders of jobs of a multirun that
        hold nothing; `closed`: folders that can't be read.
    """
    found: dict[str, list[Path]] = {"runs": [], "refused": [], "empty": [], "closed": []}
    jobs: set[Path] = set()
    for folder, inside, files in os.walk(top, onerror=lambda error: found["closed"].append(Path(error.filename))):
        path = Path(folder)
        if "config.yaml" in files:
            found["runs"].append(path)
            inside.clear()
            continue
        if REFUSED_JOBS in files:
            found["refused"].append(path / REFUSED_JOBS)
        if path in jobs and not inside and not files:
            found["empty"].append(path)
        if MULTIRUN in files:
            jobs |= {path / name for name in inside}
        if len(path.relative_to(top).parts) >= DEEPEST:
            inside.clear()
    return {kind: sorted(paths) for kind, paths in found.items()}


def _whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration by `group.key`, in which keys that the run is older than have their defaults, as where it is reloaded."""
    options: dict[str, Any] = {}
    for group in CHOSEN:
        name = config.get(f"{group}.name")
        if name in names(group):
            options |= {f"{group}.{key}": option for key, option in group_options(group, name).items()}
    options |= {f"trainer.{key}": option for key, option in group_options("trainer").items()}
    return {key: option.default for key, option in options.items() if not option.required} | dict(config)


def _read(directory: RunDirectory, read_config: Any) -> RunRecord:
    path = directory.path
    known: dict[str, Any] = {}
    try:
        config = flat(read_config(directory.config))
        if "inference" in config:  # a name alone, as runs before had it
            config["inference.name"] = config.pop("inference")
        config = _whole(config)
    except ValueError as error:
        return RunRecord(path, "damaged", f"config.yaml: {one_line(error)}")
    try:
        starts = directory.read_environment()
        first = starts[0] if starts else {}
        versions = first.get("versions") if isinstance(first.get("versions"), dict) else {}
        known = {"command": str(first.get("command") or ""), "versions": {str(k): str(v) for k, v in (versions or {}).items()}}
    except ValueError as error:
        return RunRecord(path, "damaged", one_line(error), config)
    if not directory.is_finished():
        status, reason = _standing(directory)
        return RunRecord(path, status, reason, config, accuracy=_accuracy(directory), **known)
    try:
        directory.load_model()
        metrics, accuracy = directory.read_metrics(), np.array(directory.read_accuracy(), dtype=np.float64)
        statistics, known["classes"] = json.loads(read_text(directory.statistics)), read_classes(directory)
    except ValueError as error:
        return RunRecord(path, "damaged", one_line(error), config, **known)
    references = {}
    bounds = path / REFERENCES
    for each in sorted(bounds.iterdir()) if bounds.is_dir() else []:
        if (each / "config.yaml").is_file():
            references[each.name] = _read(RunDirectory(each), read_config)
    return RunRecord(path, "complete", "", config, metrics, accuracy, statistics, references=references, **known)


def _standing(directory: RunDirectory) -> tuple[str, str]:
    """What became of a run that has no model: its status, and the reason."""
    try:
        lines = read_text(directory.log).splitlines()
    except ValueError:
        lines = []
    newest = max((place for place, line in enumerate(lines) if BEGINS in line), default=0)
    ended = [place for place, line in enumerate(lines) if place > newest and ENDED in line]
    if ended:
        told = lines[ended[-1]].partition(f"{ENDED}: ")[2] or next((line for line in reversed(lines) if line.strip()), "")
        if "KeyboardInterrupt" not in told:
            return "failed", told.strip()
    accuracy = _accuracy(directory)
    done = 0 if accuracy is None else len(accuracy) - 1
    where = f"{done} of {accuracy.shape[1]} tasks are done" if accuracy is not None else "no task is done"
    return "unfinished", where if directory.has_checkpoint() or done else f"{where}, and there is no checkpoint"


def _accuracy(directory: RunDirectory) -> np.ndarray | None:
    try:
        return np.array(directory.read_accuracy(), dtype=np.float64)
    except ValueError:
        return None


def _refused(path: Path) -> Iterator[RunRecord]:
    """Jobs of a multirun that never became a run; one that was started again has a directory, and comes first."""
    try:
        lines = read_text(path).splitlines()
    except ValueError:
        return
    for number, line in enumerate(lines):
        try:
            job = json.loads(line)
            folder, words, reason = Path(job["directory"]), [str(word) for word in job["overrides"]], str(job["reason"])
            if "\0" in str(folder):
                raise ValueError("no name of a folder")
        except (ValueError, KeyError, TypeError):
            yield RunRecord(path.parent / f"{REFUSED_JOBS} line {number + 1}", "damaged", "is no record of a refused job")
            continue
        config = dict(word.lstrip("+~").partition("=")[::2] for word in words)
        place = folder.name if folder.is_absolute() or ".." in folder.parts else folder
        yield RunRecord(path.parent / place, "failed", one_line(ValueError(reason)), config)
