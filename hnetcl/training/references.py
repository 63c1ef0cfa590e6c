"""The reference batches of virtual batch norm."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hnetcl.bn import VirtualBatchNormLayer, norm_layers
from hnetcl.errors import ArgumentError
from hnetcl.model import HyperModel
from hnetcl.tasks import TaskSequence


class References:
    """Gives the layers of virtual batch norm a reference batch of each task: training images of the task, without labels.

    Which images these are depends on the seed alone, so they are the same throughout a run, after a resumption, and whatever is
    evaluated; the random numbers of the training are not touched. A network without such layers is left alone.

        references = References(model, sequence, batch_size, seed)
        references.take([2])                  # with the weights as they are now

    Args:
        model, sequence: on one device.
        batch_size: images in a reference batch; a task with fewer gives them all.
        seed: draws them.

    Raises:
        ArgumentError: a task has a single training image, whose statistics would be none.
    """

    def __init__(self, model: HyperModel, sequence: TaskSequence, batch_size: int, seed: int) -> None:
        self.model, self.sequence, self.batch_size, self.seed = model, sequence, batch_size, seed
        self.used = any(isinstance(layer, VirtualBatchNormLayer) for layer in norm_layers(model.net).values())
        self.chosen: dict[int, Tensor] = {}  # task -> which of its training images
        for task, data in enumerate(sequence.tasks if self.used else ()):
            if len(data.train) < 2:
                rule = f"a reference batch of virtual batch norm takes two images at least; task {task} has {len(data.train)}"
                raise ArgumentError("bn.name", "virtual", rule)

    def take(self, tasks: Sequence[int]) -> None:
        """Takes the references of some tasks anew; where all tasks share one row, one reference in which these are mixed."""
        if not self.used or not tasks:
            return
        if self.model.rows == "task":
            for task in tasks:
                self.model.take_reference(self._images(task), task)
            return
        mixed = torch.cat([self._images(task) for task in tasks])
        self.model.take_reference(mixed[self._drawn(mixed)], tasks[-1])

    def take_untrained(self, tasks: Sequence[int]) -> None:
        """The same of tasks before their training. A row that all tasks share stays that of those that were trained."""
        if self.model.rows == "task":
            self.take(tasks)

    def _images(self, task: int) -> Tensor:
        """The network's input [N, C, H, W]."""
        data = self.sequence[task]
        if task not in self.chosen:
            self.chosen[task] = self._drawn(data.train.images)
        return data.preprocess(data.train.images[self.chosen[task]])

    def _drawn(self, images: Tensor) -> Tensor:
        """Which of the images make a batch [N]."""
        generator = torch.Generator(images.device).manual_seed(self.seed)
        return torch.randperm(len(images), generator=generator, device=images.device)[: self.batch_size]
