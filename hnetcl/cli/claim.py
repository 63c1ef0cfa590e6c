"""A directory for a run: a new one, or that of the run to go on with."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hnetcl.build import Parts
from hnetcl.cli.call import Call, environment
from hnetcl.cli.reload import saved_config
from hnetcl.config import Config
from hnetcl.errors import ArgumentError, StorageError, one_line
from hnetcl.training import RunDirectory

MAY_DIFFER = (
    "run",
    "data",
    "device",
    "imports",
    "observers",
    "optimized_metric",
    "references",
    "resume",
    "trainer.checkpoint_minutes",
)  # between a run and its continuation: where, not what


def is_resumed(config: Config) -> bool:
    """Whether the run in the directory is to be gone on with: that was said, or Slurm has started the job again."""
    return config.resume or os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def given_directory(config: Config, call: Call) -> RunDirectory | None:
    """The directory that the run was given; None where it gets one of its own.

    Raises:
        ArgumentError: one for all jobs of a multirun, or none for a run to go on with.
    """
    if config.run["dir"] is not None and call.directory is not None:
        raise ArgumentError("run.dir", config.run["dir"], "is one directory, but this is a multirun: set hydra.sweep.dir")
    given = config.run["dir"] or call.directory
    if config.resume and given is None:
        raise ArgumentError("resume", config.resume, "needs run.dir, the run to go on with")
    return None if given is None else RunDirectory(given)


@contextmanager
def claimed(
    directory: RunDirectory | None, config: Config, parts: Parts, call: Call
) -> Iterator[tuple[RunDirectory, list[str]]]:
    """Within, the directory is the run's alone, and says what the run is, or is found to be that of the run to go on with.

    Returns:
        The directory, and what is to be said about it.

    Raises:
        ArgumentError: the directory is in use, holds another run, or can't be written.
    """
    path = directory.path if directory else Path("outputs") / parts.sequence.name / time.strftime("%Y-%m-%d_%H-%M-%S")
    with ExitStack() as stack:
        try:
            directory = directory or RunDirectory(_fresh(path))
            path = directory.path
            if path.exists() and not path.is_dir():
                raise ArgumentError("run.dir", path, "is a file")
            _refuse_begun(directory, config)
            locked = stack.enter_context(directory.claimed())
            notes = _begin(directory, config, parts, call)
        except StorageError as error:
            name = "" if error.path == path else f"{Path(error.path).relative_to(path)} "
            raise ArgumentError("run.dir", path, f"{name}can't be written ({error.reason})") from error
        except OSError as error:
            raise ArgumentError("run.dir", path, f"can't be written ({error.strerror or one_line(error)})") from error
        if not locked:
            notes.append("this file system has no locks: nothing keeps another process out of this directory")
        yield directory, notes


def _begin(directory: RunDirectory, config: Config, parts: Parts, call: Call) -> list[str]:
    path, starts, notes = directory.path, [], []
    try:
        directory.require_plain()
    except ValueError as error:
        raise ArgumentError("run.dir", path, str(error)) from error
    _refuse_begun(directory, config)  # once more, for now nobody else can begin one
    if directory.holds_run():
        try:
            starts = directory.read_environment()
        except ValueError as error:
            raise ArgumentError("run.dir", path, f"{error}; remove that file to go on") from error
        check_same(config, saved_config(directory, "run.dir"))
        check_data(directory, parts, "run.dir")
        if not directory.has_checkpoint():
            notes.append("there is no checkpoint yet: begins anew")
    elif directory.has_checkpoint() or directory.is_finished():
        raise ArgumentError("run.dir", path, "holds a run's tensors, but no config.yaml that says of which run")
    directory.create()
    directory.write_json(directory.environment, [*starts, environment(call)])
    if not directory.holds_run():
        directory.write_json(directory.tasks, manifest(config, parts))
        directory.write_text(directory.config, OmegaConf.to_yaml(OmegaConf.create(config.values())))
    return notes


def _refuse_begun(directory: RunDirectory, config: Config) -> None:
    if directory.holds_run() and not is_resumed(config):
        raise ArgumentError("run.dir", directory.path, "holds a run already; resume=true goes on with it")


def _fresh(path: Path) -> Path:
    """Makes a directory that no other run has, be it started in the same second."""
    for suffix in ["", *(f"_{k}" for k in range(1, 1000))]:
        candidate = path.with_name(path.name + suffix)
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            continue
        return candidate
    raise ArgumentError("run.dir", path, "a thousand runs have this name")


def check_same(config: Config, saved: Config) -> None:
    """A continuation must be the same run."""
    now, before = defining(config), defining(saved)
    for key in sorted(now.keys() | before.keys()):
        if now.get(key) != before.get(key):
            raise ArgumentError(key, now.get(key), f"the run to go on with has {key}={before.get(key)}")


def check_data(directory: RunDirectory, parts: Parts, name: str) -> None:
    """The data must be those that the run was trained on."""
    value = directory.path
    try:
        saved = directory.read_tasks()
    except ValueError as error:
        raise ArgumentError(name, value, str(error)) from error
    found = parts.sequence.manifest()["tasks"]
    if len(saved) != len(found):
        raise ArgumentError(name, value, f"tasks.json has {len(saved)} tasks, but config.yaml makes {len(found)}")
    for t, (before, now) in enumerate(zip(saved, found, strict=True)):
        if before != now:
            differing = ", ".join(sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k)))
            raise ArgumentError(name, value, f"the data of task {t} is not what the run was trained on: {differing} differ")


def manifest(config: Config, parts: Parts) -> dict[str, Any]:
    """What tasks.json holds."""
    return {"scenario": config.scenario, "seed": config.seed, **parts.sequence.manifest()}


def defining(config: Config) -> dict[str, Any]:
    """What a run is, flat: all values but those that may differ between it and its continuation."""
    flat: dict[str, Any] = {}
    for key, value in config.values().items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return {key: value for key, value in flat.items() if not {key, key.partition(".")[0]} & set(MAY_DIFFER)}
