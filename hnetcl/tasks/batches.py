"""Batches drawn on the device."""

import torch
from torch import Tensor

from hnetcl.tasks.augmentation import augmented
from hnetcl.tasks.task import Task


class Batches:
    """Training batches of a task, epoch after epoch, each image once an epoch, augmented as the task says; an epoch's
    short last batch is left out.

    Args:
        task: whose training images.
        batch_size: N; a task with fewer images gives them all.
        generator: on the images' device; its state is all the state that there is between epochs.
        first: the label of class 0.
    """

    def __init__(self, task: Task, batch_size: int, generator: torch.Generator, first: int = 0) -> None:
        self.task, self.generator, self.first = task, generator, first
        self.batch_size = min(batch_size, len(task.train))
        self.order = torch.empty(0, dtype=torch.long)
        self.position = 0

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return len(self.task.train) // self.batch_size

    def draw(self) -> tuple[Tensor, Tensor]:
        """The next batch: the network's input [N, C, H, W] and labels [N]."""
        if self.position + self.batch_size > len(self.order):
            train = self.task.train
            self.order = torch.randperm(len(train), generator=self.generator, device=train.labels.device)
            self.position = 0
        index = self.order[self.position : self.position + self.batch_size]
        self.position += self.batch_size
        labels = self.task.train.labels[index]
        images = augmented(self.task.train.images[index], self.task.augment, self.generator)
        return self.task.preprocess(images), labels + self.first if self.first else labels


def batch_sizes(count: int, size: int) -> list[int]:
    """Sizes of batches of `count` images, at most `size` each.

    None is 1 where that can be, for a batch of one has no statistics of its own.
    """
    sizes = [size] * (count // size) + [count % size] * (count % size > 0)
    if size > 2 and sizes[-1:] == [1] and len(sizes) > 1:
        sizes[-2:] = [size - 1, 2]
    return sizes
