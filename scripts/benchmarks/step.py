"""A step of training as the trainer takes it."""

from torch import Tensor

from benchmarks.example import LR
from hnetcl.methods import Method, Run
from hnetcl.model import HyperModel
from hnetcl.tasks import TaskSequence
from hnetcl.tasks.batches import Batches
from hnetcl.training.optimizers import adam
from hnetcl.training.step import TrainingStep
from hnetcl.training.watch import Watch


class OurStep:
    """Steps of a task.

    Args:
        model: trained.
        method: what is done about forgetting; it has seen the tasks before.
        sequence: of the tasks.
        batches: of the one that is trained.
        task: its number; the last where left out.
        compile: the trainer's option.
    """

    def __init__(
        self,
        model: HyperModel,
        method: Method,
        sequence: TaskSequence,
        batches: Batches,
        task: int | None = None,
        compile: str = "off",
    ) -> None:
        self.model, self.method, self.batches = model.train(), method, batches
        self.optimizer, self.schedule = adam(lr=LR, schedule="constant").make(model, 1)
        device, task = batches.generator.device, len(sequence) - 1 if task is None else task
        self.step = TrainingStep(model, method, device, compile)
        self.watch = Watch(model, task, self.optimizer, device)
        self.run = Run(model, task, sequence, self.optimizer, batches.generator)
        method.start_task(self.run)

    def __call__(self) -> Tensor:
        """The loss without the penalty."""
        inputs = self.method.inputs(self.run, self.batches.draw)
        losses = self.step(self.run, inputs)
        self.watch.look(losses, inputs)
        self.optimizer.step()
        self.schedule.step()
        self.method.after_step(self.run, inputs, losses)
        return losses.parts["loss"]
