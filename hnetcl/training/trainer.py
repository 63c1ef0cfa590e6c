"""The continual-learning loop."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.inference import Criterion, open_classifier, open_recognizer
from hnetcl.methods import Method, Run
from hnetcl.model import HyperModel
from hnetcl.modes import start_training
from hnetcl.registry import check_value, checking
from hnetcl.tasks import ActiveClasses, Batches, Split, TaskSequence, score_name
from hnetcl.training.answers import Answers
from hnetcl.training.checkpoints import Checkpoints, Stop, Training, plain_values
from hnetcl.training.clip import clip_gradients
from hnetcl.training.current import CurrentTask
from hnetcl.training.early_stopping import EarlyStopping
from hnetcl.training.evaluation import Protocol, accuracies, accuracy, images_at_once
from hnetcl.training.observer import Observer, RunStart, Step
from hnetcl.training.optimizers import OptimizerFactory
from hnetcl.training.options import OFF, check_options
from hnetcl.training.references import References
from hnetcl.training.result import Result
from hnetcl.training.rundir import RunDirectory
from hnetcl.training.standing import Standing
from hnetcl.training.statistics import statistics_report
from hnetcl.training.step import TrainingStep
from hnetcl.training.told import step_record
from hnetcl.training.watch import Watch, check_learned

POINTS = 50  # of a task's training curves, where log_every is left out: enough that a curve can be smoothed


@checking
class Trainer:
    """Trains a model on a sequence of tasks, one after the other.

    Per task: the method keeps what it needs, then per step a batch is drawn on the device, the hypernetwork writes the
    parameters, loss and penalty are summed, the optimizer steps. At its end tasks are evaluated, a row of R is filled and a
    checkpoint written. Checkpoints are also written within a task, unless the method keeps something of its steps that it does
    not name (see `Method.task_state`). `fit` goes on from the newest when the run is started again, to the same bits.

    Layers of virtual batch norm are given a reference batch of every task (see `References`): with the weights before each step
    of the task, and with those after the last, which evaluation then uses; of a task that was not trained yet, with the weights
    that are evaluated.

    Numbers that are not finite end the training before they reach the model, a checkpoint or an observer (see `Watch`).

    Args:
        model, sequence, method, optimizer: what is trained, on what, how. Model and sequence lie on one device. A network that
            is in evaluation mode as a whole is put into training mode; single layers in evaluation mode stay so.
        generator: on that device; draws the batches.
        scenario, inference: what R is: see `Protocol`. Tasks that were not trained yet never come into question.
        active_classes: with one head over all classes, those that the loss looks at, see `TaskSequence.active`.
        steps: per task; give them or `epochs`.
        epochs: per task, over its own training images; over those of all tasks so far for a method that sees old data.
        batch_size: images in a training step.
        accumulate: micro-batches in which a step's images pass the network, one after the other, see `TrainingStep`.
        label_smoothing: of the loss in training, see `loss_of`.
        clip: the largest norm of all gradients together, which longer ones are shortened to; None: they are as they are.
        patience: epochs without a lower loss of held-out images that end a task, see `EarlyStopping`; None: none ends early.
        eval_batch_size: images in an evaluation step; None: see `images_at_once`.
        log_every: observers hear the values of every so many steps, and only then these travel to the host; None: of
            `POINTS` steps a task.
        compile: see `TrainingStep`; evaluation is never compiled.
        evaluate: what is tested after task i. "seen": tasks 0 to i + 1, and before the first all of them, which is what the
            metrics of R need; "all": all; "last": task i, and all after the last, so that only the average accuracy and
            backward transfer are known. All else of R is NaN.
        statistics: after which tasks a `statistics_report` is made: "each", "last", "none".
        optimizer_state: "fresh": every task starts with a new optimizer; "kept": what it has gathered stays.
        checkpoint_minutes: between two checkpoints within a task, at least; more where they would take more than a fiftieth of
            the time. None writes them at the ends of tasks only, and where the training is to stop.

    Raises:
        ArgumentError: both or none of steps and epochs, a number below 1, a network without a logit for each class, what
            `Protocol.check` or `TrainingStep` refuses.
    """

    def __init__(
        self,
        model: HyperModel,
        sequence: TaskSequence,
        method: Method,
        optimizer: OptimizerFactory,
        generator: torch.Generator,
        scenario: str = "task",
        inference: Criterion = "entropy",
        active_classes: ActiveClasses = "seen",
        *,
        steps: Annotated[int, Ge(1)] | None = None,
        epochs: Annotated[int, Ge(1)] | None = None,
        batch_size: Annotated[int, Ge(2)] = 128,
        accumulate: Annotated[int, Ge(1)] = 1,
        label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
        clip: Annotated[float, Gt(0)] | None = None,
        patience: Annotated[int, Ge(1)] | None = None,
        eval_batch_size: Annotated[int, Ge(1)] | None = None,
        log_every: Annotated[int, Ge(1)] | None = None,
        compile: Literal["auto", "on", "off"] = "auto",
        evaluate: Literal["seen", "all", "last"] = "seen",
        statistics: Literal["each", "last", "none"] = "each",
        optimizer_state: Literal["fresh", "kept"] = "fresh",
        checkpoint_minutes: Annotated[float, Ge(0)] | None = 10.0,
    ) -> None:
        if (steps is None) == (epochs is None):
            raise ArgumentError("steps", steps, f"give steps or epochs, not both or none (epochs={epochs})")
        check_value("active_classes", active_classes, ActiveClasses)
        method.check(model, sequence)
        self.model, self.sequence, self.method, self.optimizer = model, sequence, method, optimizer
        self.generator, self.active_classes = generator, active_classes
        self.directory: RunDirectory | None = None
        self.observers: Sequence[Observer] = ()
        self.steps, self.epochs, self.log_every = steps, epochs, log_every
        self.batch_size, self.checkpoint_minutes = batch_size, checkpoint_minutes
        self.accumulate, self.label_smoothing, self.clip, self.patience = accumulate, label_smoothing, clip, patience
        wanted = {"label_smoothing": label_smoothing, "patience": patience, "accumulate": accumulate}
        lengths = [self._steps(task) / self._epoch(task) for task in range(len(sequence))]
        check_options(method, sequence, wanted, batch_size, lengths)
        self.evaluate, self.statistics, self.optimizer_state = evaluate, statistics, optimizer_state

        self.references = References(model, sequence, batch_size, generator.initial_seed())
        self.references.take(range(len(sequence)) if model.rows == "task" else [0])
        few = Split(sequence[0].test.images[:2], sequence[0].test.labels[:2])
        protocol = Protocol(scenario, inference, head=sequence.head, counts=sequence.class_counts, loss=sequence.loss)
        protocol.check(model)
        if scenario != "task":
            open_recognizer(model, sequence, inference)
        open_classifier(model, sequence, method.classifier())
        accuracy(model, 0, sequence[0], few, protocol, seen=1)  # refuses a network that does not give a logit for each class
        self.eval_batch_size = eval_batch_size or images_at_once(model, sequence[0])
        self.protocol = replace(protocol, batch_size=self.eval_batch_size)
        self.step = TrainingStep(model, method, generator.device, compile, accumulate=accumulate)
        self.answers = Answers(model, sequence, self.protocol)

        settings = ("steps", "epochs", "batch_size", "evaluate", "statistics", "active_classes", "optimizer_state")
        self.program = {  # what a checkpoint must agree on; the command line compares whole configurations before
            "num_tasks": len(sequence),
            "seed": generator.initial_seed(),
            **{name: getattr(self, name) for name in (*settings, *OFF) if "." not in name},
            **plain_values("protocol", protocol),
            **plain_values("method", method),
            **plain_values("optimizer", optimizer),
            "optimizer.milestones": optimizer.milestones,
        }
        self.standing = Standing.fresh(len(sequence))
        self.checkpoints = self._checkpoints(Stop())

    def fit(
        self, directory: RunDirectory | None = None, observers: Sequence[Observer] = (), stop: Stop | None = None
    ) -> Result:
        """Trains the tasks that are not done yet.

        Args:
            directory: where checkpoints are kept, and found; None keeps none.
            observers: who is told.
            stop: whether to write a checkpoint and stop; None: it never is.

        Raises:
            StoppedError: `stop` said so.
            ArgumentError: no checkpoint in the directory can be used.
            StorageError: a file can't be written.
        """
        self.directory, self.observers = directory, observers
        with nullcontext() if directory is None else directory.claimed():
            return self._fit(stop or Stop())

    def _fit(self, stop: Stop) -> Result:
        self.checkpoints, standing = self._checkpoints(stop), self.standing
        resumed = self.checkpoints.load()
        steps = tuple(map(self._steps, range(len(self.sequence))))
        step = steps[standing.done] if standing.trained > standing.done else (self.checkpoints.loaded or {}).get("step", 0)
        start = RunStart(
            steps, standing.done, standing.end(self.model) if standing.done else None, step, score_name(self.sequence.loss)
        )
        for observer in self.observers:
            observer.on_start(start)
        if not resumed:
            self._enter("evaluating")
            if self.evaluate != "last":
                tasks = self.checkpoints.pausing(range(len(self.sequence)))
                found = accuracies(self.model, self.sequence, self.protocol, tasks)
                standing.untrained, standing.known, standing.aware = found
        for task in range(standing.done, len(self.sequence)):
            self._run_task(task)
        self._write_tables()  # again, for a run that goes on after its last task
        predictions = self.answers.predictions(self.checkpoints.pausing(range(len(self.sequence))))
        measured = standing.matrix, standing.untrained, standing.known, standing.seconds, standing.steps, standing.aware
        return Result(*measured, predictions, self.checkpoints.seconds_total)

    def _checkpoints(self, stop: Stop) -> Checkpoints:
        """Of this training."""
        training = Training(self.model, self.method, self.generator, self.standing, self.program)
        return Checkpoints(training, self.checkpoint_minutes, self.directory, self.observers, stop)

    def _evaluated(self, task: int) -> range:
        """The tasks that are tested after a task."""
        tasks = len(self.sequence)
        if self.evaluate == "all" or task == tasks - 1:
            return range(tasks)
        return range(task, task + 1) if self.evaluate == "last" else range(min(task + 2, tasks))

    def measured(self) -> dict[str, Tensor]:
        """R and b with zeros where something will be measured, NaN elsewhere."""
        R, b = torch.full_like(self.standing.matrix, torch.nan), torch.full_like(self.standing.untrained, torch.nan)
        for task in range(len(R)):
            R[task, list(self._evaluated(task))] = 0
        return {"R": R, "b": b if self.evaluate == "last" else torch.zeros_like(b)}

    def _evaluate(self, task: int) -> None:
        """Fills a row of R."""
        chosen = self._evaluated(task)
        self.references.take_untrained([t for t in chosen if t > task])
        now, tasks = self.standing, self.checkpoints.pausing(chosen)
        see = self.answers.begin() if task == len(self.sequence) - 1 else None
        found = accuracies(self.model, self.sequence, self.protocol, tasks, seen=task + 1, see=see)
        for values, new in zip((now.matrix[task], now.known, now.aware), found, strict=True):
            values[chosen.start : chosen.stop] = new

    def _run_task(self, task: int) -> None:
        steps, standing = self._steps(task), self.standing
        for observer in self.observers:
            observer.on_task_start(task, steps, standing.steps)
        if standing.trained == task:
            self._enter("training")
            current = self._start(task, steps)
            self._train(current)
            started = time.perf_counter()
            self.method.end_task(current.run)
            check_learned(self.method, task)
            if self.protocol.recognizes(self.model):
                self.model.recognizer.learn(self.model, task, self.sequence[task], self.eval_batch_size)
            if self.optimizer_state == "kept":
                standing.optimizer = current.run.optimizer.state_dict()["state"]
            standing.trained, standing.seconds_of_task = task + 1, current.seconds + time.perf_counter() - started
            standing.spared = steps - current.step
            self.checkpoints.pause()

        self._enter("evaluating")
        self._evaluate(task)
        standing.done, standing.steps = task + 1, standing.steps + steps - standing.spared
        standing.seconds += standing.seconds_of_task
        now = self.sequence[task]
        misfits: dict[str, Tensor] = {}
        standing.distances = {}
        if self.statistics == "each" or (self.statistics == "last" and standing.done == len(self.sequence)):
            standing.distances, misfits = statistics_report(self.model, self.sequence, task + 1, self.eval_batch_size)
        for name, values in misfits.items():
            standing.misfits.setdefault(name, torch.full_like(standing.matrix, torch.nan))[task, : task + 1] = values
        val = accuracy(self.model, task, now, now.val, self.protocol, seen=task + 1)[0] if len(now.val) else None
        end = standing.end(self.model, val)
        for observer in self.observers:
            observer.on_task_end(end)
        self._write_tables()
        self.checkpoints.write()  # last: what it counts as done has been told and written

    def _write_tables(self) -> None:
        if self.directory:
            self.directory.write_accuracy(self.standing.matrix, self.standing.untrained)
            self.directory.write_statistics(self.standing.distances, self.standing.misfits)

    def _start(self, task: int, steps: int) -> CurrentTask:
        """What the next step of a task starts from: its beginning, or what a checkpoint held."""
        model, method = self.model, self.method
        batches = [
            Batches(data, self.batch_size, self.generator, self.sequence.first_output(t))
            for t, data in enumerate(self.sequence.tasks[: task + 1])
        ]
        self.checkpoints.start_task()
        for part in (model.net, model.hnet, model):
            start_training(part)
        model.start_task(task)
        optimizer, schedule = self.optimizer.make(model, steps)
        if self.standing.optimizer:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": self.standing.optimizer})
        how, seen = (self.active_classes, 0, self.batch_size, self.label_smoothing), self._trained_on(task)
        run = Run(model, task, self.sequence, optimizer, self.generator, *how)
        self.references.take(seen)
        method.start_task(run)
        early = None if self.patience is None else EarlyStopping(self.patience, self._epoch(task), seen, self.eval_batch_size)
        current = CurrentTask(run, method, schedule, batches, steps, early)
        self.checkpoints.go_on(current)
        return current

    def _trained_on(self, task: int) -> Sequence[int]:
        """The tasks whose data the training of a task sees."""
        return range(task + 1) if self.method.sees_old_data else [task]

    def _steps(self, task: int) -> int:
        return self.steps or (self.epochs or 0) * self._epoch(task)

    def _epoch(self, task: int) -> int:
        """Steps of one pass over the images that the training of a task sees."""
        seen = [self.sequence[each] for each in self._trained_on(task)]
        return sum(Batches(data, self.batch_size, self.generator).per_epoch for data in seen)

    def _enter(self, phase: str) -> None:
        for observer in self.observers:
            observer.on_phase(phase)

    def _train(self, current: CurrentTask) -> None:
        run, method, steps, schedule = current.run, self.method, current.steps, current.schedule
        model, task, optimizer = run.model, run.task, run.optimizer
        trained = self._trained_on(task)
        now = [task] if model.rows == "task" else trained
        watch = Watch(model, task, optimizer, self.generator.device, first=current.step)
        log_every = self.log_every or max(1, steps // POINTS)
        started = time.perf_counter() - current.seconds
        for step in range(current.step, steps):
            for observer in self.observers:
                observer.on_tick(step + 1)
            run.step = step
            self.references.take(now)
            inputs = method.inputs(run, current.draw)
            if not isinstance(inputs.task, Tensor) and inputs.task != task:
                self.references.take([inputs.task])
            losses = self.step(run, inputs)
            norm = watch.look(losses, inputs)
            if self.observers and (step % log_every == 0 or step == steps - 1):
                self._tell(step_record(run, steps, losses, inputs, norm, watch))
            if self.clip is not None:
                clip_gradients(watch.parameters, norm, self.clip)
            optimizer.step()
            schedule.step()
            method.after_step(run, inputs, losses)
            current.step = step + 1
            if current.ends_epoch():
                self.references.take(trained)
                if current.gives_up():
                    break
            if self.checkpoints.due():
                current.seconds = time.perf_counter() - started
                watch.check(step + 1)
                self.checkpoints.pause(current)
        current.take_best()
        self.references.take(trained)
        watch.close()
        if self.generator.device.type == "cuda":
            torch.cuda.synchronize(self.generator.device)  # so that the seconds are those of the work, not of its launch
        current.seconds = time.perf_counter() - started

    def _tell(self, step: Step) -> None:
        for observer in self.observers:
            observer.on_step(step)
