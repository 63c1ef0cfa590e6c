"""What a training goes on from, and when it is written."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hnetcl.errors import ArgumentError, StoppedError, one_line
from hnetcl.methods import Method, resumes_within_task
from hnetcl.model import HyperModel
from hnetcl.training.current import CurrentTask
from hnetcl.training.engine import random_states, set_random_states
from hnetcl.training.observer import Observer
from hnetcl.training.options import OFF
from hnetcl.training.pace import Pace
from hnetcl.training.rundir import RunDirectory
from hnetcl.training.standing import Standing
from hnetcl.training.watch import check_sound

SHARE = 0.02  # of the time that checkpoints within a task may take

logger = logging.getLogger("hnetcl")


class Stop:
    """Whether a training is to stop. This one never is."""

    def asked(self) -> bool:
        """Looked at after every step, and between the evaluations of two tasks. Must be quick."""
        return False

    def ends(self, where: str) -> bool:
        """What the training goes on from has been written: whether it ends now.

        Args:
            where: it would go on.
        """
        return True


@dataclass
class Training:
    """What all of a training's checkpoints are of.

    Args:
        program: plain values that a checkpoint must agree on with who goes on from it.
    """

    model: HyperModel
    method: Method
    generator: torch.Generator
    standing: Standing
    program: dict[str, Any]


class Checkpoints:
    """Writes what a training goes on from: at the end of every task, every so many minutes within one, and when it is to stop.

    A checkpoint within a task holds the state before the task, and what steps have changed since. What goes on from it starts
    the task again, so that the method makes once more what it made then, and puts the rest in place.

    Args:
        training: whose.
        minutes: between two checkpoints within a task, at least; None: there are none but where the training is to stop.
        directory: where they are kept; None keeps none.
        observers: are told before, so that nothing is lost of what they have been told.
        stop: whether to write a checkpoint, and to stop.
    """

    def __init__(
        self,
        training: Training,
        minutes: float | None,
        directory: RunDirectory | None,
        observers: Sequence[Observer],
        stop: Stop,
    ) -> None:
        self.training, self.directory, self.observers, self.stop = training, directory, observers, stop
        self.within = directory is not None and resumes_within_task(training.method)
        self.pace = Pace(SHARE, guess=0.0, least=math.inf if minutes is None else 60 * minutes)
        self.before: dict[str, Any] = {}  # the state before the current task
        self.loaded: dict[str, Any] | None = None  # of a current task, until it goes on
        self.seconds_before, self.started = 0.0, time.perf_counter()  # of the whole loop

    @property
    def seconds_total(self) -> float:
        """Of the whole loop, what was done before a checkpoint included."""
        return self.seconds_before + time.perf_counter() - self.started

    def load(self) -> bool:
        """Puts the newest checkpoint's state in place. Whether there was one.

        Raises:
            ArgumentError: none can be used, or it is of another training.
        """
        if self.directory is None:
            return False
        try:
            state = self.directory.load_checkpoint(logger.warning)
        except ValueError as error:
            raise ArgumentError("run.dir", self.directory.path, str(error)) from error
        if state is None:
            return False
        with self._fitting():
            before, now = {**OFF, **state["program"]}, self.training.program
            for name in before | now:
                if before.get(name) != now.get(name):
                    rule = f"the checkpoint in the directory is of a training with {name}={before.get(name)}"
                    raise ArgumentError(name, now.get(name), f"{rule}; allowed: that, or another directory")
            self._set(state)
            self.loaded, self.seconds_before = state.get("current"), float(state["seconds_total"])
            step = self.loaded["step"] if self.loaded else 0
        logger.info(f"goes on {position(self.training.standing, step)}")
        return True

    def start_task(self) -> None:
        """Called before a task is started: what a checkpoint within it begins from."""
        if self.within:
            self.before = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, self._state())

    def go_on(self, current: CurrentTask) -> None:
        """Called once a task has been started: puts in place what a checkpoint says of its steps."""
        if self.loaded is not None:
            with self._fitting():
                current.load(self.loaded)
                check_sound(self.training.model)
            self.loaded = None

    def due(self) -> bool:
        """Whether `pause` has something to do after a step."""
        return self.stop.asked() or (self.within and self.pace.due())

    def pause(self, current: CurrentTask | None = None) -> None:
        """Writes a checkpoint where one is due, and stops where that was asked for.

        Args:
            current: the task in training, where that can be kept; None between training and evaluation.

        Raises:
            StoppedError: it was.
        """
        step = 0 if current is None or not self.within else current.step
        if step or (current is None and self.training.standing.trained and self.stop.asked()):
            self.write(current)
        where = position(self.training.standing, step)
        if self.stop.asked() and self.stop.ends(where):
            raise StoppedError(where)

    def pausing(self, tasks: Sequence[int]) -> Iterator[int]:
        """The same tasks, for an evaluation that may stop between two of them."""
        for task in tasks:
            if self.stop.asked():
                self.pause()
            yield task

    def write(self, current: CurrentTask | None = None) -> None:
        """Writes a checkpoint."""
        if self.directory is None:
            return
        with self.pace.measured():
            for observer in self.observers:
                observer.on_checkpoint()
            try:
                state = self._state() if current is None else {**self.before, "current": current.state()}
                self.directory.save_checkpoint({**state, "seconds_total": self.seconds_total})
            except TypeError as error:
                if current is None:
                    raise
                self.within = False
                logger.warning(f"no more checkpoints within tasks: {error}")

    def _state(self) -> dict[str, Any]:
        """All that is there between two tasks."""
        training = self.training
        return {
            "program": training.program,
            "standing": training.standing.state(),
            "model": training.model.saved_tensors(),
            "method": training.method.state_dict(),
            "generator": training.generator.get_state(),
            "random": random_states(training.generator.device),
        }

    def _set(self, state: dict[str, Any]) -> None:
        training = self.training
        training.standing.load(state["standing"])
        training.model.load_tensors(state["model"])
        check_sound(training.model)
        kept = state["method"]
        if not isinstance(kept, dict) or not all(isinstance(value, Tensor) for value in kept.values()):
            raise TypeError("what the method keeps are tensors by name")
        training.method.load_state_dict(kept)
        training.generator.set_state(state["generator"])
        set_random_states(state["random"], training.generator.device)

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Within, a state that is not of this training is told in one line."""
        try:
            yield
        except ArgumentError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            assert self.directory is not None
            rule = f"the checkpoint does not fit this training ({type(error).__name__}: {one_line(error)})"
            raise ArgumentError("run.dir", self.directory.path, rule) from error


def position(standing: Standing, step: int = 0) -> str:
    """Where a training goes on, in words.

    Args:
        step: of the current task that are done and kept.
    """
    if step:
        return f"in task {standing.done}, after step {step}"
    if standing.trained > standing.done:
        return f"after the training of task {standing.done}"
    return f"after task {standing.done - 1}" if standing.done else "at the beginning"


def plain_values(name: str, part: object) -> dict[str, Any]:
    """The kind of a part, and its attributes that are plain values, as they are before a training: for `Training.program`."""
    values = {f"{name}.{key}": value for key, value in vars(part).items() if isinstance(value, bool | int | float | str)}
    return {name: type(part).__qualname__, **values}
