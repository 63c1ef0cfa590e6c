"""What a training leaves in memory."""

from dataclasses import dataclass

from torch import Tensor

from hnetcl.training.answers import Predictions


@dataclass(frozen=True)
class Result:
    """What a finished run found out.

    Args:
        matrix: R [T, T] in float64; NaN where a task was not evaluated.
        untrained: b [T] in float64; NaN likewise.
        known: how often the task of a test image was known after the last task [T] in float64; 1 where it is told.
        seconds: training time of all tasks, evaluation not included.
        steps: training steps of all tasks.
        aware: accuracy after the last task where the task is told [T] in float64.
        predictions: of all test images after the last task; of a regression none.
        seconds_total: time of the whole loop: training, evaluation, what observers do, checkpoints.
    """

    matrix: Tensor
    untrained: Tensor
    known: Tensor
    seconds: float
    steps: int
    aware: Tensor
    predictions: Predictions
    seconds_total: float
