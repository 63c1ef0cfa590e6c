"""The two jobs of the command line: train a run, evaluate a run."""

import json
import math
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from hnetcl.bn import BATCH, VirtualBatchNormLayer, batchnorm_layers, norm_layers, recalibrate
from hnetcl.build import Parts, build, named
from hnetcl.cli.call import PYTHON, Call, environment
from hnetcl.cli.reload import load_weights, saved_config
from hnetcl.config import Config, EvaluationConfig, all_keys
from hnetcl.errors import ArgumentError, one_line
from hnetcl.memory import allocating
from hnetcl.metrics import summary
from hnetcl.model import HyperModel
from hnetcl.registry import make, names
from hnetcl.tasks import data_folder, listed
from hnetcl.training import (
    Protocol,
    Result,
    RunDirectory,
    Trainer,
    accuracies,
    batch_sizes,
    engine,
    images_at_once,
    resolve_device,
)

MAY_DIFFER = (
    "run",
    "data",
    "device",
    "imports",
    "observers",
    "optimized_metric",
    "resume",
)  # between a run and its continuation: where, not what


def train(config: Config, call: Call = PYTHON) -> Path:
    """Trains a run, or goes on with one, and leaves all its files.

    Args:
        config: of the run.
        call: how the job was called.

    Returns:
        The run's directory.

    Raises:
        ArgumentError: the configuration can't be built, or the directory is in use; nothing has been written then.
    """
    if config.data["root"] is not None:
        config.data["root"] = str(_data_folder(config.data["root"]).absolute())
    values = dict(config.trainer)
    threads, deterministic, _ = (values.pop(key) for key in ("threads", "deterministic", "precision"))
    device = resolve_device(config.device)
    with engine(config.seed, threads=threads, deterministic=deterministic):
        parts = build(config, device)
        generator = torch.Generator(device).manual_seed(config.seed)
        with named("trainer", inference="", scenario="", head="", logits=""):
            trainer = Trainer(
                *(parts.model, parts.sequence, parts.method, parts.optimizer, generator, config.scenario, config.inference),
                config.active_classes or "seen",
                **values,
            )
        _check_measured(config, trainer)
        directory = _claim(config, parts, call)
        from hnetcl.tracking import Console, log_to, number, observers, result_table

        console = Console()
        with log_to(console, directory.log) as log, ExitStack() as closing:
            log.info(describe(parts, device, config))
            what = _flatten({key: value for key, value in config.values().items() if key not in MAY_DIFFER})
            offered = {"console": console, "directory": directory, "config": what, "keys": all_keys(), "run_name": call.name()}
            listening = observers(config.observers, **offered)
            for observer in listening:
                closing.callback(observer.close)
            try:
                with allocating("trainer.batch_size", config.trainer["batch_size"]):
                    result = trainer.fit(directory, listening)
            except KeyboardInterrupt:
                log.info(f"interrupted; this goes on after the last task:\n{call.continued(directory.path)}")
                raise
            directory.save_model(parts.model.saved_tensors())
            metrics = _metrics(parts, result, config)
            for observer in listening:
                observer.on_end(metrics)
            closing.close()  # the bar makes way for the table
            directory.write_json(directory.metrics, metrics)  # last: a run with metrics is a whole run
            log.info(result_table(parts.sequence, result.matrix))
            log.info("\n".join(f"{name}: {number(value)}" for name, value in metrics.items()))
            log.info(f"run: {directory.path}")
    return directory.path


def metric(run: Path, name: str) -> float:
    """A finished run's metric, by its name in metrics.json; NaN where the run did not measure what it takes."""
    value = json.loads(RunDirectory(run).metrics.read_text(encoding="utf-8"))[name]
    return math.nan if value is None else float(value)


def evaluate(config: EvaluationConfig) -> list[float]:
    """Evaluates a finished run from its directory alone, and prints its accuracies beside those that training recorded.

    Returns:
        The accuracies of the evaluated tasks.

    Raises:
        ArgumentError: the run is not there, not finished or damaged, the data is not the run's, or there is no such task.
    """
    directory = RunDirectory(config.run)
    if not directory.holds_run():
        raise ArgumentError("run", config.run, "holds no run (there is no config.yaml)")
    trained = saved_config(directory, "run")
    trained.data["root"] = config.data["root"] or trained.data["root"]
    with engine(trained.seed, threads=trained.trainer["threads"], deterministic=trained.trainer["deterministic"]):
        parts = build(trained, resolve_device(config.device))
        sequence, model = parts.sequence, parts.model
        _check_data(directory, parts, "run")
        try:
            load_weights(model, directory)
            recorded = directory.read_accuracy()[-1]
        except ValueError as error:
            raise ArgumentError("run", config.run, f"can't be reloaded: {error}") from error
        tasks = list(range(len(sequence)))
        if config.task is not None:
            tasks = [_task_number("task", config.task, len(sequence))]
        row = _row(config.stats, parts)
        at_once = trained.trainer["eval_batch_size"] or images_at_once(model, sequence[0])
        if config.stats == "recalibrated":
            _recalibrate(parts, tasks, at_once)
        scenario, inference = config.scenario or trained.scenario, config.inference or trained.inference
        if scenario == "task" and config.inference is not None:
            raise ArgumentError(
                "inference", inference, "in scenario=task the task is told; allowed with scenario=domain, class"
            )
        if scenario != "task" and config.stats not in ("own", "recalibrated"):
            raise ArgumentError(
                "stats", config.stats, f"in scenario={scenario} each task uses its own; allowed: own, recalibrated"
            )
        protocol = Protocol(scenario, inference, at_once, sequence.head)
        with allocating("trainer.eval_batch_size", at_once):
            right, known, _ = accuracies(model, sequence, protocol, tasks, row)
        found = right.tolist()
    from hnetcl.tracking import comparison_table, number

    print(comparison_table(sequence, tasks, found, recorded))
    print(f"average_accuracy: {number(sum(found) / len(found))} (tasks: {len(tasks)}, stats: {config.stats})")
    if scenario != "task":
        print(f"task_inference_accuracy: {number(known.mean())} (scenario: {scenario}, inference: {inference})")
    own = config.stats == "own" and (scenario, inference) == (trained.scenario, trained.inference)
    if own and found != [recorded[t] for t in tasks]:
        print("these are not the recorded numbers: another device, or another version of torch?")
    return found


def describe(parts: Parts, device: torch.device, config: Config) -> str:
    """What is about to be trained, in one line; and in a second one which classes of the data are not there."""
    hnet, left_out = parts.model.hnet, parts.sequence.facts.get("left_out")
    return (
        f"{parts.sequence.name}, {len(parts.sequence)} tasks, on {device}: hnet={config.hnet['name']} with "
        f"{hnet.num_trainable:,} trainable parameters generates {hnet.num_generated:,} (compression {hnet.compression:.3f})"
        f"{hnet.note and f'; {hnet.note}'}"
    ) + (f"\nleft out, for there are no training images: {listed(left_out)}" if left_out else "")


def _data_folder(root: str) -> Path:
    try:
        return data_folder(root)
    except ArgumentError as error:
        raise error.within("data") from error


def _check_measured(config: Config, trainer: Trainer) -> None:
    """A sweeper can't look for the best of what is not measured."""
    name, measured = config.optimized_metric, trainer.measured()
    known = [each for each in names("metric") if not math.isnan(make("metric", {"name": each}, **measured))]
    if name in names("metric") and name not in known:
        rule = f"takes more than trainer.evaluate={trainer.evaluate} measures; allowed with it: {', '.join(known)}"
        raise ArgumentError("optimized_metric", name, rule)


def _claim(config: Config, parts: Parts, call: Call) -> RunDirectory:
    """Takes a directory for the run and writes what the run is; or finds there the run to go on with."""
    if config.run["dir"] is not None and call.directory is not None:
        raise ArgumentError("run.dir", config.run["dir"], "is one directory, but this is a multirun: set hydra.sweep.dir")
    given = config.run["dir"] or call.directory
    if config.resume and given is None:
        raise ArgumentError("resume", config.resume, "needs run.dir, the run to go on with")
    path = Path(given) if given else Path("outputs") / parts.sequence.name / time.strftime("%Y-%m-%d_%H-%M-%S")
    try:
        return _begin(RunDirectory(path if given else _fresh(path)), config, parts, call)
    except OSError as error:
        raise ArgumentError("run.dir", path, f"can't be written ({error.strerror or one_line(error)})") from error


def _begin(directory: RunDirectory, config: Config, parts: Parts, call: Call) -> RunDirectory:
    path, starts = directory.path, []
    if path.exists() and not path.is_dir():
        raise ArgumentError("run.dir", path, "is a file")
    if directory.holds_run():
        if not config.resume:
            raise ArgumentError("run.dir", path, "holds a run already; resume=true goes on with it")
        _check_same(config, saved_config(directory, "run.dir"))
        _check_data(directory, parts, "run.dir")
        starts = directory.read_environment()
    directory.create()
    directory.write_json(directory.environment, [*starts, environment(call)])
    if not directory.holds_run():
        directory.write_json(directory.tasks, _manifest(config, parts))
        directory.write_text(directory.config, OmegaConf.to_yaml(OmegaConf.create(config.values())))
    return directory


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


def _check_same(config: Config, saved: Config) -> None:
    """A continuation must be the same run."""
    now, before = (_flatten({k: v for k, v in c.values().items() if k not in MAY_DIFFER}) for c in (config, saved))
    for key in sorted(now.keys() | before.keys()):
        if now.get(key) != before.get(key):
            raise ArgumentError(key, now.get(key), f"the run to go on with has {key}={before.get(key)}")


def _check_data(directory: RunDirectory, parts: Parts, name: str) -> None:
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


def _task_number(name: str, value: int, tasks: int) -> int:
    if not 0 <= value < tasks:
        raise ArgumentError(name, value, f"the run has tasks 0 to {tasks - 1}")
    return value


def _row(stats: str, parts: Parts) -> int | str | None:
    """The `stats` argument as a row of statistics; None for each task's own."""
    if stats == "own":
        return None
    modes = [layer.statistics_mode for layer in batchnorm_layers(parts.model.net).values()]
    virtual = any(isinstance(layer, VirtualBatchNormLayer) for layer in norm_layers(parts.model.net).values())
    if not virtual and not any(mode.uses_statistics for mode in modes):
        raise ArgumentError("stats", stats, "this run's network uses no statistics; allowed: own")
    if stats == "batch":
        return BATCH
    if parts.model.rows == "shared":
        raise ArgumentError("stats", stats, "this run keeps one row of statistics for all tasks; allowed: own, batch")
    if any(mode.written for mode in modes):
        raise ArgumentError("stats", stats, "the hypernetwork writes this run's statistics; allowed: own, batch")
    if not virtual and not any(mode.keeps_rows for mode in modes):
        raise ArgumentError("stats", stats, "this run's network keeps no running statistics; allowed: own, batch")
    if stats == "recalibrated" and not virtual:
        return None
    if not stats.isdecimal():
        raise ArgumentError("stats", stats, f"allowed: own, batch, {'' if virtual else 'recalibrated, '}or a task's number")
    return _task_number("stats", int(stats), len(parts.sequence))


def _recalibrate(parts: Parts, tasks: list[int], batch_size: int) -> None:
    """Takes the rows of these tasks anew from their training images."""
    model = parts.model
    for task in tasks:
        data, params = parts.sequence[task], model.hnet(task)
        batches = (data.preprocess(images) for images in data.train.images.split(batch_sizes(len(data.train), batch_size)))
        recalibrate(model.net, batches, task, call=partial(_run_by_batch, model, params, task))


def _run_by_batch(model: HyperModel, params: dict[str, Tensor], task: int, x: Tensor) -> Any:
    return model.run(params, x, task, BATCH)


def _manifest(config: Config, parts: Parts) -> dict[str, Any]:
    return {"scenario": config.scenario, "seed": config.seed, **parts.sequence.manifest()}


def _metrics(parts: Parts, result: Result, config: Config) -> dict[str, float]:
    metrics = summary(result.matrix, result.untrained)
    if config.scenario != "task":
        metrics |= {
            "task_aware": float(result.aware.mean()),
            "task_agnostic": metrics["average_accuracy"],
            "task_inference_accuracy": float(result.known.mean()),
        }
    return {
        **metrics,
        "compression": parts.model.hnet.compression,
        "seconds": result.seconds,
        "seconds_total": result.seconds_total,
        "steps_per_second": result.steps / result.seconds,
    }


def _flatten(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat
