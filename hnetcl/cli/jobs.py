"""The two jobs of the command line: train a run, evaluate a run."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hnetcl.bn import BATCH, VirtualBatchNormLayer, batchnorm_layers, norm_layers, recalibrate
from hnetcl.build import Parts, build, named
from hnetcl.cli.bounds import bound_call, bound_config
from hnetcl.cli.built import built, possible
from hnetcl.cli.call import PYTHON, Call
from hnetcl.cli.claim import check_data, check_same, claimed, defining, given_directory, is_resumed
from hnetcl.cli.reload import load_weights, reachable, recorded, saved_config, sound_tasks, whole_run
from hnetcl.cli.signals import Signals
from hnetcl.config import Config, EvaluationConfig, Values, all_keys
from hnetcl.errors import ArgumentError, StoppedError, StorageError
from hnetcl.inference import teach
from hnetcl.memory import allocating
from hnetcl.metrics import summary
from hnetcl.model import HyperModel
from hnetcl.numbers import real_view
from hnetcl.tasks import batch_sizes, listed, score_name
from hnetcl.training import (
    Protocol,
    Result,
    RunDirectory,
    Trainer,
    accuracies,
    class_accuracies,
    engine,
    images_at_once,
    resolve_device,
    write_classes,
)


def train(config: Config, call: Call = PYTHON) -> Path:
    """Trains a run, or goes on with one, and leaves all its files; then its references. Of a finished run that is to go on,
    prints the result.

    Args:
        config: of the run.
        call: how the job was called.

    Returns:
        The run's directory.

    Raises:
        ArgumentError: the configuration can't be built, or that of a reference, or the directory is in use; nothing has been
            written then. Or a file of the run can't be written; what it goes on from is whole then.
        SystemExit: a signal has stopped the run, with 128 and the signal's number.
    """
    path = _train(config, call)
    for name in dict.fromkeys(config.references):
        print(f"reference: {name}")
        _train(bound_config(config, name, path), bound_call(call, name, path))
    return path


def _train(config: Config, call: Call) -> Path:
    """Trains one run, as `train` does."""
    given, damage = given_directory(config, call), ""
    if given is not None and is_resumed(config):
        told, damage = finished_run(given, config)
        if told:
            return given.path
    with (
        built(config) as (parts, trainer),
        possible(config),
        Signals() as signals,
        claimed(given, config, parts, call) as (directory, notes),
    ):
        notes = [*([f"{damage}; made again from the checkpoint"] if damage else []), *notes]
        stopped = _fit(trainer, directory, config, call, parts, signals, notes)
    if stopped:
        sys.exit(128 + (signals.got or 0))
    return directory.path


def _fit(
    trainer: Trainer, directory: RunDirectory, config: Config, call: Call, parts: Parts, signals: Signals, notes: Sequence[str]
) -> bool:
    """Trains in a directory that is the run's alone. Whether a signal has stopped it."""
    from hnetcl.tracking import Console, at_chance, log_to, no_better_than_the_mean, number, observers, result_table

    console, signals.goes_on = Console(), call.continued(directory.path)
    parameters = sum(real_view(p).numel() for p in parts.model.parameters() if p.requires_grad)  # some stop after task 0
    try:
        with log_to(console, directory.log) as log, ExitStack() as closing:
            log.info(describe(parts, trainer.generator.device, config))
            for note in notes:
                log.warning(note)
            offered = {"console": console, "directory": directory, "config": defining(config), "keys": all_keys()}
            offered |= {"model": parts.model, "sequence": parts.sequence}
            listening = observers(config.observers, **offered, run_name=call.name())
            for observer in listening:
                closing.callback(observer.close)
            try:
                with allocating("trainer.batch_size", config.trainer["batch_size"]):
                    result = trainer.fit(directory, listening, signals)
            except StoppedError:
                return True
            except KeyboardInterrupt:
                log.info(f"interrupted; this goes on from the newest checkpoint: {signals.goes_on}")
                raise
            metrics = _metrics(parts, result, config, parameters)
            for observer in listening:
                observer.on_end(metrics)
            closing.close()  # the bar makes way for the table
            loss = parts.sequence.loss
            if loss == "cross_entropy":
                write_classes(directory, class_accuracies(parts.sequence, result.predictions))
            directory.write_json(directory.metrics, metrics)
            directory.save_model(parts.model.saved_tensors())  # last: a run with a model is a whole run
            log.info(result_table([task.classes for task in parts.sequence.tasks], result.matrix, loss))
            counts, every = parts.sequence.class_counts, config.scenario == "class"
            images = [len(task.test) for task in parts.sequence.tasks]
            answers = [sum(counts)] * len(counts) if every else counts
            scores = result.matrix[-1].tolist()
            if note := at_chance(scores, images, answers) if loss == "cross_entropy" else no_better_than_the_mean(scores):
                log.warning(note)
            log.info("\n".join(f"{name}: {number(value)}" for name, value in metrics.items()))
            log.info(f"run: {directory.path}")
    except StorageError as error:
        kept = "what was written before is whole" if directory.has_checkpoint() else "no task was written yet"
        rule = f"{error}; {kept}; once that is mended, this goes on: {signals.goes_on}"
        raise ArgumentError("run.dir", directory.path, rule) from error
    return False


def finished_run(directory: RunDirectory, config: Config) -> tuple[bool, str]:
    """Prints the result of a finished run, which is left as it is.

    Returns:
        Whether there was one; and if not because it is damaged, what is.

    Raises:
        ArgumentError: it is another run, or damaged without a checkpoint that it could be made again from.
    """
    if not (reachable(directory, "run.dir") and directory.is_finished()):
        return False, ""
    check_same(config, saved_config(directory, "run.dir"))
    try:
        directory.load_model()
        tasks, metrics = sound_tasks(directory), directory.read_metrics()
        rows = recorded(directory, len(tasks))
    except ValueError as error:
        if directory.has_checkpoint():
            return False, str(error)
        raise ArgumentError("run.dir", directory.path, f"can't be reloaded: {error}") from error
    from hnetcl.tracking import number, result_table

    print("this run is finished")
    matrix = torch.tensor(rows[1:], dtype=torch.float64)
    print(result_table([task["classes"] for task in tasks], matrix, tasks[0].get("loss", "cross_entropy")))
    print("\n".join(f"{name}: {number(value)}" for name, value in metrics.items()))
    print(f"run: {directory.path}")
    return True, ""


def metric(run: Path, name: str) -> float:
    """A finished run's metric, by its name in metrics.json; NaN where the run did not measure what it takes."""
    return RunDirectory(run).read_metrics()[name]


def evaluate(config: EvaluationConfig) -> list[float]:
    """Evaluates a finished run from its directory alone, and prints its accuracies beside those that training recorded.

    Returns:
        The accuracies of the evaluated tasks.

    Raises:
        ArgumentError: the run is not there, not finished or damaged, the data is not the run's, or there is no such task.
    """
    directory = RunDirectory(config.run)
    tensors = whole_run(directory, config.run)
    trained = saved_config(directory, "run")
    trained.data["root"] = config.data["root"] or trained.data["root"]
    with engine(trained.seed, threads=trained.trainer["threads"], deterministic=trained.trainer["deterministic"]):
        parts = build(trained, resolve_device(config.device))
        sequence, model = parts.sequence, parts.model
        check_data(directory, parts, "run")
        try:
            load_weights(model, tensors, directory)
            before = recorded(directory, len(sequence))[-1]
        except ValueError as error:
            raise ArgumentError("run", config.run, f"can't be reloaded: {error}") from error
        tasks = list(range(len(sequence)))
        if config.task is not None:
            tasks = [_task_number("task", config.task, len(sequence))]
        row = _row(config.stats, parts)
        at_once = trained.trainer["eval_batch_size"] or images_at_once(model, sequence[0])
        if config.stats == "recalibrated":
            _recalibrate(parts, tasks, at_once)
        scenario = config.scenario or trained.scenario
        inference: Values = config.inference or trained.inference  # type: ignore[assignment]
        if scenario == "task" and config.inference is not None:
            raise ArgumentError(
                "inference", inference["name"], "in scenario=task the task is told; allowed with scenario=domain, class"
            )
        if scenario != "task" and config.stats not in ("own", "recalibrated"):
            raise ArgumentError(
                "stats", config.stats, f"in scenario={scenario} each task uses its own; allowed: own, recalibrated"
            )
        own = config.stats == "own" and (scenario, inference) == (trained.scenario, trained.inference)
        protocol = Protocol(scenario, inference, at_once, sequence.head, loss=sequence.loss)
        with allocating("trainer.eval_batch_size", at_once), named("inference", scenario=""):
            if config.inference is not None:
                protocol.check(model)
            if protocol.recognizes(model) and (
                trained.scenario == "task" or inference != trained.inference or config.stats == "recalibrated"
            ):
                teach(model, sequence, inference, at_once)
            right, known, _ = accuracies(model, sequence, protocol, tasks, row, split=config.split)
        found = right.tolist()
    from hnetcl.tracking import comparison_table, number

    is_test = config.split == "test"
    variances, of = None, "" if is_test else ", on held-out images"
    if sequence.loss != "cross_entropy":
        splits = [getattr(sequence[t], config.split).labels.double() for t in tasks]
        variances, of = [float(y.var(correction=0)) for y in splits], f"{of}, of {score_name(sequence.loss)}"
    print(comparison_table({t: sequence[t].classes for t in tasks}, found, before if is_test else None, variances))
    print(f"average_accuracy: {number(sum(found) / len(found))} (tasks: {len(tasks)}, stats: {config.stats}{of})")
    if scenario != "task":
        by = f"inference: {inference['name']}" if protocol.infers(model) else "one network for all tasks"
        print(f"task_inference_accuracy: {number(known.mean())} (scenario: {scenario}, {by})")
        if protocol.recognizes(model):
            print(f"kept to recognise tasks: {model.recognizer.kept_bytes:,} bytes")
    if own and is_test and found != [before[t] for t in tasks]:
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


def _metrics(parts: Parts, result: Result, config: Config, parameters: int) -> dict[str, float]:
    """What metrics.json holds.

    Args:
        parameters: trainable ones of the model.
    """
    said = (result.predictions.logits, result.predictions.labels) if parts.sequence.loss == "cross_entropy" else ()
    metrics = summary(result.matrix, result.untrained, *said)
    if config.scenario != "task":
        metrics |= {
            "task_aware": float(result.aware.mean()),
            "task_agnostic": metrics["average_accuracy"],
            "task_inference_accuracy": float(result.known.mean()),
            "recognizer_bytes": float(parts.model.recognizer.kept_bytes if parts.model.recognizer is not None else 0),
        }
    kept, every = parts.method.stored_images, sum(len(task.train) for task in parts.sequence.tasks)
    return {
        **metrics,
        "compression": parts.model.hnet.compression,
        "parameters": parameters,
        "steps": result.steps,
        "stored_images": every if parts.method.sees_old_data else kept,
        "seconds": result.seconds,
        "seconds_total": result.seconds_total,
        "steps_per_second": result.steps / result.seconds,
    }
