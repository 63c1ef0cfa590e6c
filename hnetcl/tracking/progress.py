"""A progress bar for people who watch, and a line per task for all."""

import logging

import rich.progress as bars
from rich.console import Console

from hnetcl.training import Observer, Step, TaskEnd

logger = logging.getLogger("hnetcl")


class Progress(Observer):
    """Task, step, loss, accuracy and time left, on one line that renews itself; nothing where the output is no terminal.

    Args:
        console: where to draw.
        num_tasks: T.
    """

    def __init__(self, console: Console, num_tasks: int) -> None:
        self.num_tasks = num_tasks
        self.bar = bars.Progress(
            bars.TextColumn("task {task.fields[number]} of {task.fields[total_tasks]}"),
            bars.BarColumn(bar_width=24),
            bars.MofNCompleteColumn(),
            bars.TextColumn("loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:.3f}  left"),
            bars.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.row: bars.TaskID | None = None

    def on_task_start(self, task: int, steps: int, steps_before: int) -> None:
        self.bar.start()
        self.row = self.bar.add_task(
            "", total=steps, number=task, total_tasks=self.num_tasks, loss=float("nan"), accuracy=float("nan")
        )

    def on_step(self, step: Step) -> None:
        if self.row is not None:
            self.bar.update(self.row, completed=step.step, loss=step.loss, accuracy=step.accuracy)

    def on_task_end(self, end: TaskEnd) -> None:
        if self.row is not None:
            self.bar.remove_task(self.row)
        seen = end.matrix[end.task, : end.task + 1]
        val = "" if end.val_accuracy is None else f"validation {end.val_accuracy:.4f}, "
        logger.info(
            f"task {end.task} of {self.num_tasks}: {val}test {seen[-1]:.4f}, mean over tasks so far {seen.mean():.4f}, "
            f"{end.seconds:.1f} s"
        )

    def close(self) -> None:
        self.bar.stop()
