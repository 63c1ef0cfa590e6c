"""An observer that ends a run, so that it can go on."""

import signal

from hnetcl.training import Observer, RunStart


class Stops(Observer):
    """Ends a run in the middle of task 1, once."""

    lives = 0
    task = 0

    def on_start(self, start: RunStart) -> None:
        type(self).lives += 1

    def on_task_start(self, task: int, steps: int, steps_before: int) -> None:
        self.task = task

    def on_tick(self, step: int) -> None:
        if (self.task, step, self.lives) == (1, 3, 1):
            signal.raise_signal(signal.SIGTERM)
