"""TensorBoard."""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from hnetcl.tracking.figures import accuracy_matrix, row_statistics, to_image
from hnetcl.training import Observer, Step, TaskEnd


class TensorBoard(Observer):
    """Writes what happens as event files.

    | tag | what | over |
    |---|---|---|
    | loss, penalty, gradient_norm, learning_rate, batch_accuracy `/task_T` | scalars of task T's training | steps of the run |
    | accuracy/task_T | test accuracy on task T | tasks trained; 0 is the untrained model |
    | val_accuracy/task_T | on task T's held-out images, at its end | tasks trained |
    | accuracy_matrix | R as an image | tasks trained |
    | embedding/task_T | histogram of its embedding; the projector shows all tasks' | tasks trained |
    | misfit/LAYER/task_T | how far its statistics lie from those its data has now | tasks trained |
    | distance/LAYER | between the statistics of two tasks, the mean over all pairs | tasks trained |
    | row_statistics | both as a figure | tasks trained |
    | config | the configuration as text | |

    Args:
        folder: for the event files.
        config: the configuration as YAML.
    """

    def __init__(self, folder: Path, config: str) -> None:
        self.writer = SummaryWriter(str(folder))
        self.writer.add_text("config", f"```yaml\n{config}```")
        self.steps_before = 0

    def on_task_start(self, task: int, steps: int, steps_before: int) -> None:
        self.steps_before = steps_before

    def on_step(self, step: Step) -> None:
        scalars = {
            "loss": step.loss,
            "penalty": step.penalty,
            "batch_accuracy": step.accuracy,
            "gradient_norm": step.gradient_norm,
            "learning_rate": step.learning_rate,
        }
        for name, value in scalars.items():
            self.writer.add_scalar(f"{name}/task_{step.task}", value, self.steps_before + step.step)

    def on_task_end(self, end: TaskEnd) -> None:
        trained = end.task + 1
        for j, value in enumerate(end.matrix[end.task].tolist()):
            if end.task == 0:
                self.writer.add_scalar(f"accuracy/task_{j}", end.untrained[j], 0)
            self.writer.add_scalar(f"accuracy/task_{j}", value, trained)
        if end.val_accuracy is not None:
            self.writer.add_scalar(f"val_accuracy/task_{end.task}", end.val_accuracy, trained)
        image = to_image(accuracy_matrix(end.matrix, end.untrained))
        self.writer.add_image("accuracy_matrix", image, trained, dataformats="HWC")
        if end.embeddings is not None:
            for j, embedding in enumerate(end.embeddings):
                self.writer.add_histogram(f"embedding/task_{j}", embedding, trained)
            names = [f"task {j}" for j in range(len(end.embeddings))]
            self.writer.add_embedding(end.embeddings, metadata=names, tag="embeddings", global_step=trained)
        self._add_statistics(end, trained)
        self.writer.flush()

    def _add_statistics(self, end: TaskEnd, trained: int) -> None:
        for name, misfit in end.misfits.items():
            for j, value in enumerate(misfit[end.task, :trained].tolist()):
                self.writer.add_scalar(f"misfit/{name}/task_{j}", value, trained)
        for name, apart in end.distances.items():
            if trained > 1:
                self.writer.add_scalar(f"distance/{name}", apart.sum() / (trained * (trained - 1)), trained)
        if end.distances:
            image = to_image(row_statistics(end.distances, end.misfits))
            self.writer.add_image("row_statistics", image, trained, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()
