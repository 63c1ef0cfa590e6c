"""A finished run, from its directory alone."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from hnetcl.build import build_model
from hnetcl.cli.imports import import_all
from hnetcl.cli.plain import read_config
from hnetcl.config import Config, parse
from hnetcl.errors import ArgumentError, one_line
from hnetcl.model import HyperModel
from hnetcl.tasks import Loss
from hnetcl.training import RunDirectory, engine, resolve_device
from hnetcl.training.watch import check_sound

BY_NAME = ("observers", "optimized_metric")  # other keys whose values imported modules register
LARGEST = 10**9  # numbers in an image; no image set is so large


def load(run: str | Path, device: str = "auto", imports: Sequence[str] = ()) -> HyperModel:
    """The model of a finished run, in evaluation mode. The run's data need not be there.

        model = hnetcl.load("outputs/split_mnist/2026-11-26_10-00-00")
        logits = model(images, task=2)           # images standardized as tasks.json says: mean and std of each task
        net = model.plain(2)                     # a task's network as a module of its own

    Args:
        run: its directory.
        device: where the model is put: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1" ...
        imports: the modules or files that registered the run's network; a saved run imports nothing by itself.

    Raises:
        ArgumentError: the directory holds no finished run, or a file of it is damaged; its network is not registered.
    """
    directory, where = RunDirectory(os.path.expanduser(run)), resolve_device(device)
    tensors = whole_run(directory, run)
    import_all(imports)
    config = saved_config(directory, "run")
    try:
        tasks = sound_tasks(directory)
        with engine(config.seed):
            counts = [len(task["classes"]) for task in tasks]
            outputs = sum(counts) if config.chosen_head == "all" else max(counts)
            model = build_model(config, tasks[0]["shape"], outputs, len(tasks))
        load_weights(model, tensors, directory)
    except ArgumentError:
        raise
    except ValueError as error:
        raise ArgumentError("run", run, f"can't be reloaded: {one_line(error)}") from error
    return model.to(where).eval()


def reachable(directory: RunDirectory, name: str) -> bool:
    """Whether there is a run in a directory.

    Raises:
        ArgumentError: of that name; the directory can't be looked at.
    """
    try:
        return directory.holds_run()
    except OSError as error:
        raise ArgumentError(name, directory.path, f"can't be read ({error.strerror})") from error


def whole_run(directory: RunDirectory, run: Any) -> dict[str, Tensor]:
    """The tensors of a finished run, all of whose files have been found whole.

    Args:
        run: the directory, as it was given.

    Raises:
        ArgumentError: there is no finished run, or a file of it is damaged.
    """
    if not reachable(directory, "run"):
        raise ArgumentError("run", run, "holds no run (there is no config.yaml)")
    try:
        return directory.load_model()
    except ValueError as error:
        raise ArgumentError("run", run, f"can't be reloaded: {error}") from error


def load_weights(model: HyperModel, tensors: dict[str, Tensor], directory: RunDirectory) -> None:
    """Fills a model with the tensors of a run's model.safetensors.

    Raises:
        ValueError: they are not those of this model, or values of no trained model.
    """
    try:
        for kind, part in (("recognizer", model.recognizer), ("classifier", model.classifier)):
            own = {name.removeprefix(f"{kind}."): value for name, value in tensors.items() if name.startswith(f"{kind}.")}
            if part is not None and own:
                part.open_as(own)
        model.load_tensors(tensors)
        check_sound(model)
        if model.recognizer is not None and model.recognizer.opened:
            model.recognizer.check_rows(model)
    except ValueError as error:
        raise ValueError(f"{directory.model.name} is damaged ({error})") from error


def sound_tasks(directory: RunDirectory) -> list[dict[str, Any]]:
    """What tasks.json says, with what a model is built from checked.

    Raises:
        ValueError: the file is missing or damaged.
    """
    tasks = directory.read_tasks()
    faults = [] if tasks else ["there are no tasks"]
    for number, task in enumerate(tasks):
        shape, classes = task["shape"], task["classes"]
        if not _are(int, shape, 3) or len(shape) != 3 or min(shape) < 1 or math.prod(shape) > LARGEST:
            faults.append(f"task {number} has shape {shape!r}")
        if task.get("loss", "cross_entropy") not in get_args(Loss):
            faults.append(f"task {number} has loss {task['loss']!r}")
        if not _are(str, classes, 1 if "loss" in task else 2):
            faults.append(f"task {number} has classes {classes!r}")
    if faults:
        raise ValueError(f"{directory.tasks.name} is damaged ({faults[0]})")
    return tasks


def recorded(directory: RunDirectory, tasks: int) -> list[list[float]]:
    """R of a finished run of so many tasks, the untrained model's row first.

    Raises:
        ValueError: accuracy.csv is missing or damaged.
    """
    rows = directory.read_accuracy()
    if len(rows) != tasks + 1 or len(rows[0]) != tasks:
        raise ValueError(f"{directory.accuracy.name} is damaged ({len(rows) - 1} rows of {len(rows[0])} for {tasks} tasks)")
    return rows


def _are(kind: type, values: Any, least: int) -> bool:
    """Whether it is a list of at least so many values of this kind."""
    return isinstance(values, list) and len(values) >= least and all(type(value) is kind for value in values)


def saved_config(directory: RunDirectory, name: str) -> Config:
    """The configuration that a run was started with.

    Raises:
        ArgumentError: of that name; the file is missing or damaged. Of a part's own where the run imported what registers it.
    """
    imports = None
    try:
        values = read_config(directory.config)
        imports = values.get("imports")
        return parse(values)
    except ArgumentError as error:
        if imports and (error.name.endswith(".name") or error.name in BY_NAME):
            rule = f"{error.allowed}; the run had imports=[{','.join(map(str, imports))}]"
            raise ArgumentError(error.name, error.value, rule) from error
        rule = f"config.yaml is damaged, or can't be used here ({one_line(error)})"
        raise ArgumentError(name, directory.path, rule) from error
    except ValueError as error:
        text = one_line(error)
        rule = text if text.startswith("config.yaml ") else f"config.yaml is damaged ({text})"
        raise ArgumentError(name, directory.path, rule) from error
