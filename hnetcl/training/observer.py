"""What the trainer tells while it runs, and to whom."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Step:
    """A logged training step.

    Args:
        task: the current task.
        step: from 1, within the task; `steps` is the last.
        losses: the parts of the loss by name: "loss", that of the batch (cross entropy in nats, or the mean squared error), and
            what the method added to it.
        accuracy: fraction of the batch classified right; of a regression, R^2 of the batch.
        gradient_norm: Euclidean norm over all trainable parameters.
        learning_rate: of this step.
    """

    task: int
    step: int
    steps: int
    losses: dict[str, float]
    accuracy: float
    gradient_norm: float
    learning_rate: float

    @property
    def loss(self) -> float:
        """That of the batch, without what the method added."""
        return self.losses["loss"]


@dataclass(frozen=True)
class TaskEnd:
    """A task that has been trained and evaluated.

    Args:
        task: its number.
        val_accuracy: on its held-out images; None where there are none.
        matrix: R [T, T], rows up to `task` filled, NaN below.
        untrained: b [T].
        embeddings: of all tasks [T, E], or None.
        seconds: training time of this task, evaluation not included.
        distances: by batch-norm layer, those between the statistics of the tasks so far [task + 1, task + 1].
        misfits: by batch-norm layer [T, T]: after training i, how far the statistics of task j lie from those that its data
            has now; NaN where j > i. See `statistics_report`.

    R may hold NaN elsewhere too, where a task was not evaluated.
    """

    task: int
    val_accuracy: float | None
    matrix: Tensor
    untrained: Tensor
    embeddings: Tensor | None
    seconds: float
    distances: dict[str, Tensor] = field(default_factory=dict)
    misfits: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class RunStart:
    """A run that begins, or goes on.

    Args:
        steps: of every task [T].
        done: tasks that were trained before; 0 for a run that begins.
        last: the newest of these, without the values that no checkpoint keeps (`val_accuracy`); None for a run that begins.
        step: steps of the next task that were done before.
        score: what the numbers of R are, see `score_name`.
    """

    steps: tuple[int, ...]
    done: int
    last: TaskEnd | None
    step: int = 0
    score: str = "accuracy"


class Observer:
    """Listens to a run; every event may be left out.

        @hnetcl.register("observer", "printer")
        class Printer(Observer):
            def on_task_end(self, end: TaskEnd) -> None:
                print(end.task, end.matrix[end.task])

    `observers=[progress,printer] imports=[FILE]` then uses it. A constructor is given what it names: `directory` (the
    `RunDirectory`), `config` (the configuration, flat), `keys` (all that a configuration can have), `run_name` (what the run
    was told besides the defaults), `console` (where to draw), `model` and `sequence` (which it leaves as they are), `others`
    (the observers before it; it then comes last).

    A resumed run tells the events of the steps and tasks that it trains, not of those that were trained before.
    """

    def on_start(self, start: RunStart) -> None:
        """The run begins or goes on; nothing has been evaluated yet."""

    def on_phase(self, phase: str) -> None:
        """What the run does from now on: "evaluating" or "training"."""

    def on_task_start(self, task: int, steps: int, steps_before: int) -> None:
        """Task number `task` begins; it will take `steps` steps, after `steps_before` of the tasks before it."""

    def on_tick(self, step: int) -> None:
        """Every step, from 1, before its losses are known. Must be quick, and leave the device alone."""

    def on_step(self, step: Step) -> None:
        """Every `log_every`-th step, and a task's first and last."""

    def on_task_end(self, end: TaskEnd) -> None:
        """A task has been trained, and all tasks evaluated."""

    def on_checkpoint(self) -> None:
        """A checkpoint is about to be written: what was told up to here will not be told again, and must not get lost."""

    def on_figure(self, name: str, png: bytes, size: tuple[int, int], trained: int) -> None:
        """Another observer has drawn a figure.

        Args:
            name: of the figure.
            png: the picture.
            size: height and width, in pixels.
            trained: tasks that it tells of.
        """

    def on_end(self, metrics: dict[str, float]) -> None:
        """The run is complete, and these are its metrics (metrics.json)."""

    def close(self) -> None:
        """The run is over, or has failed. Called once."""
