"""A progress bar for people who watch, and a line per task for all."""

import logging
import time

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from hnetcl.registry import register
from hnetcl.tracking.console import drop_lines, task_line
from hnetcl.training import Observer, RunDirectory, RunStart, Step, TaskEnd

logger = logging.getLogger("hnetcl")


@register("observer", "progress")
class Progress(Observer):
    """Where the run is, on one line that moves with the time; nothing where the output is no terminal. And a line per task.

    The line shows the task, its steps, the newest loss and accuracy, or what is done beside training (evaluating, writing), and
    the time left of the whole run: of the steps by their mean, and of what lies between two tasks by how long it took last.

    A run that goes on drops lines from its log of tasks that it will tell of again.

    Args:
        console: where to draw.
        directory: of the run; None where there is no log.
    """

    def __init__(self, console: Console, directory: RunDirectory | None = None) -> None:
        self.watched, self.directory = console.is_terminal, directory
        self.steps: tuple[int, ...] = ()
        self.task, self.step, self.numbers = 0, 0, ""
        self.score = "accuracy"
        self.first = 0  # steps of the task that an earlier process has done
        self.phase, self.since = "", time.perf_counter()
        self.trained_steps, self.training, self.between = 0, 0.0, 0.0  # of this process; the seconds of the finished phases
        self.bar = Live(console=console, transient=True, get_renderable=self._line, refresh_per_second=4)

    def on_start(self, start: RunStart) -> None:
        self.steps, self.task, self.first = start.steps, min(start.done, len(start.steps) - 1), start.step
        self.score = start.score
        if self.directory is not None:
            drop_lines(self.directory.log, start.done)
        if self.watched and start.done < len(start.steps):
            self.bar.start()

    def on_phase(self, phase: str) -> None:
        now = time.perf_counter()
        if self.phase == "training":
            self.training += now - self.since
            self.trained_steps += self.step - self.first
            self.first = 0
        self.phase, self.since = phase, now

    def on_task_start(self, task: int, steps: int, steps_before: int) -> None:
        if self.trained_steps:
            self.between = time.perf_counter() - self.since
        self.task, self.step, self.numbers = task, self.first, ""

    def on_tick(self, step: int) -> None:
        self.step = step

    def on_step(self, step: Step) -> None:
        self.numbers = f"loss {step.loss:.4f}  {self.score} {step.accuracy:.3f}"

    def on_task_end(self, end: TaskEnd) -> None:
        seen = end.matrix[end.task, : end.task + 1]
        val = "" if end.val_accuracy is None else f"validation {end.val_accuracy:.4f}, "
        text = f"{val}test {seen[-1]:.4f}, mean over tasks so far {seen.mean():.4f}, {end.seconds:.1f} s"
        logger.info(task_line(end.task, len(end.matrix), text))
        self.phase = "writing"

    def seconds_left(self) -> float | None:
        """Of the whole run; None before the first step is done."""
        training, steps, now = self.training, self.trained_steps, time.perf_counter() - self.since
        if self.phase == "training":
            training, steps = training + now, steps + max(0, self.step - self.first - 1)  # told when it begins
        if steps < 1:
            return None
        steps_left = sum(self.steps[self.task :]) - self.step
        pauses = self.between * (len(self.steps) - self.task)
        return steps_left * training / steps + max(0.0, pauses - (0.0 if self.phase == "training" else now))

    def _line(self) -> Table:
        total = self.steps[self.task] if self.steps else 0
        left = self.seconds_left()
        parts: list[str | ProgressBar] = [
            f"task {self.task} of {len(self.steps)}",
            ProgressBar(total=max(1, total), completed=self.step, width=12),
            f"{self.step}/{total}",
            self.numbers if self.phase == "training" else self.phase,
            "" if left is None else f"{_clock(left)} left",
        ]
        line = Table.grid(padding=(0, 1))
        line.add_row(*(part for part in parts if part != ""))
        return line

    def close(self) -> None:
        self.bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
