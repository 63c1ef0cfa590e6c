"""TensorBoard."""

import threading
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from hnetcl.files import read_text, writing
from hnetcl.registry import register
from hnetcl.tracking.events import PER_STEP, drop_events
from hnetcl.training import Observer, RunDirectory, RunStart, Step, TaskEnd
from hnetcl.training.pace import Pace

CHARTS = {
    "all tasks": {
        "test accuracy": ["Multiline", [r"accuracy/task_\d+"]],
        "average accuracy, between the lowest and the highest": [
            "Margin",
            [f"accuracy/{k}" for k in ("average", "lowest", "highest")],
        ],
        **{name: ["Multiline", [rf"{name}/task_\d+"]] for name in PER_STEP},
    }
}
PROJECTOR = 'embeddings {\n  tensor_name: "task embeddings"\n  tensor_path: "embeddings.tsv"\n  metadata_path: "tasks.tsv"\n}\n'


def stored(method: Callable[..., None]) -> Callable[..., None]:
    """The same method of `TensorBoard`, whose faults of the machine name the folder."""

    @wraps(method)
    def told(self: "TensorBoard", *args: Any) -> None:
        with writing(self.folder):
            method(self, *args)

    return told


class TensorBoard(Observer):
    """Writes what happens as event files.

    | tag | what | over |
    |---|---|---|
    | loss, penalty, gradient_norm, learning_rate, batch_accuracy `/task_T` | scalars of task T's training | steps of the run |
    | further losses of the method, by name, `/task_T` | the same | steps of the run |
    | accuracy/task_T | test accuracy (of a regression, R^2) on task T, from its own training on | tasks trained |
    | accuracy/average, lowest, highest | of the tasks trained so far | tasks trained |
    | val_accuracy/task_T | on task T's held-out images, at its end | tasks trained |
    | misfit/LAYER/task_T | how far its statistics lie from those its data has now | tasks trained |
    | distance/LAYER | between the statistics of two tasks, the mean over all pairs | tasks trained |
    | metrics/NAME | what metrics.json holds, at the end | tasks trained |
    | accuracy_matrix, accuracy_curves, row_statistics, learned | the figures, where these are drawn | tasks trained |
    | embedding/task_T | histogram of its embedding; the projector shows all tasks' newest | tasks trained |
    | config | the configuration as text | |

    Custom scalars show all tasks in one chart. HPARAMS has the configuration, and at the end the metrics. Histograms and
    projector are left out after a task where they would cost more than a twentieth of the time. A run that goes on first drops
    what the killed one wrote after its checkpoint, so that no step is there twice.

    Args:
        folder: for the event files.
        text: the configuration as YAML.
        config: the same, flat.
        keys: all that a configuration can have: TensorBoard takes HPARAMS' columns from any one of the runs that it shows.
        name: of a folder below, which TensorBoard shows as the end of the run's name. A run that goes on keeps its own.
    """

    def __init__(
        self, folder: Path, text: str, config: dict[str, Any] | None = None, keys: Sequence[str] = (), name: str = ""
    ) -> None:
        before = sorted(folder.rglob("events.out.tfevents.*"))
        self.folder = before[0].parent if before else folder / name
        self.text, self.keys = text, keys
        self.config = {key: _hparam(value) for key, value in (config or {}).items()}
        self.writer: Any = None
        self.before = threading.excepthook
        self.steps_before, self.tasks, self.pace = 0, 0, Pace(guess=0.1)

    @stored
    def on_start(self, start: RunStart) -> None:
        self.tasks = len(start.steps)
        steps = sum(start.steps[: start.done]) + start.step
        drop_events(self.folder, start.done, steps)
        self.writer = SummaryWriter(str(self.folder))
        self.before, threading.excepthook = threading.excepthook, self._told_once
        if steps == 0:
            self.writer.add_text("config", f"```yaml\n{self.text}```")
            self.writer.add_custom_scalars(CHARTS)
            if self.config:
                self._add_summary(hparams(self.config, {})[1])

    def on_task_start(self, task: int, steps: int, steps_before: int) -> None:
        self.steps_before = steps_before

    @stored
    def on_step(self, step: Step) -> None:
        others = (step.accuracy, step.gradient_norm, step.learning_rate)
        numbers = {"penalty": 0.0} | step.losses | dict(zip(PER_STEP[2:], others, strict=True))
        for name, value in numbers.items():
            self.writer.add_scalar(f"{name}/task_{step.task}", value, self.steps_before + step.step)

    @stored
    def on_task_end(self, end: TaskEnd) -> None:
        trained = end.task + 1
        seen = end.matrix[end.task, :trained]
        scalars = {f"accuracy/task_{j}": value for j, value in enumerate(seen.tolist())}
        scalars |= {"accuracy/average": seen.mean(), "accuracy/lowest": seen.min(), "accuracy/highest": seen.max()}
        if end.val_accuracy is not None:
            scalars[f"val_accuracy/task_{end.task}"] = end.val_accuracy
        for name, misfit in end.misfits.items():
            scalars |= {f"misfit/{name}/task_{j}": value for j, value in enumerate(misfit[end.task, :trained].tolist())}
        for name, apart in end.distances.items():
            if trained > 1:
                scalars[f"distance/{name}"] = apart.sum() / (trained * (trained - 1))
        for tag, value in scalars.items():
            if value == value:  # NaN: not evaluated
                self.writer.add_scalar(tag, value, trained)
        if end.embeddings is not None and (trained == self.tasks or self.pace.due()):
            with self.pace.measured():
                self._add_embeddings(end.embeddings, trained)
        self.writer.flush()

    def _add_embeddings(self, embeddings: torch.Tensor, trained: int) -> None:
        for j, embedding in enumerate(embeddings):
            if embedding.isfinite().all():  # TensorBoard has no histogram of anything else
                self.writer.add_histogram(f"embedding/task_{j}", embedding, trained)
        table = "\n".join("\t".join(map(str, row)) for row in embeddings.tolist())
        for name, text in (
            ("embeddings.tsv", table),
            ("tasks.tsv", "\n".join(f"task {j}" for j in range(len(embeddings)))),
            ("projector_config.pbtxt", PROJECTOR),
        ):
            (self.folder / name).write_text(text + "\n", encoding="utf-8")

    @stored
    def on_checkpoint(self) -> None:
        self.writer.flush()

    @stored
    def on_figure(self, name: str, png: bytes, size: tuple[int, int], trained: int) -> None:
        picture = Summary.Image(height=size[0], width=size[1], colorspace=3, encoded_image_string=png)
        self._add_summary(Summary(value=[Summary.Value(tag=name, image=picture)]), trained)

    @stored
    def on_end(self, metrics: dict[str, float]) -> None:
        scalars = {f"metrics/{name}": value for name, value in metrics.items()}
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, self.tasks)
        if self.config:
            columns, _, end = hparams({**dict.fromkeys(self.keys, ""), **self.config}, scalars)
            self._add_summary(columns)
            self._add_summary(end)

    def _add_summary(self, summary: Any, step: int | None = None) -> None:
        self.writer.file_writer.add_summary(summary, step)

    @stored
    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None
            threading.excepthook = self.before

    def _told_once(self, failure: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread raises a fault in the main thread, too, at the next event: it need not be printed."""
        if not isinstance(failure.exc_value, OSError):
            self.before(failure)


def _hparam(value: Any) -> Any:
    """A value as HPARAMS can show it."""
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else str(value)


@register("observer", "tensorboard")
def tensorboard(directory: RunDirectory, config: dict[str, Any], keys: Sequence[str], run_name: str) -> TensorBoard:
    """TensorBoard in a run's directory."""
    return TensorBoard(directory.tensorboard, read_text(directory.config), config, keys, run_name)
