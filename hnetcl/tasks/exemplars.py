"""Stored training images of the tasks so far, as even over classes as they allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hnetcl.tasks.augmentation import augmented
from hnetcl.tasks.sequence import TaskSequence


@dataclass
class Exemplars:
    """At most `size` training images. Those of a class stand in an order: where it may keep fewer, its last ones go.

    Classes are numbered task after task, see `TaskSequence.first_class`.

    Args:
        size: images.
        images: [M, C, H, W] as the sequence holds them, the network's input is made of them when they are drawn.
        classes: [M] int64.
    """

    size: int
    images: Tensor = field(default_factory=lambda: torch.zeros(0))
    classes: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    def __len__(self) -> int:
        return len(self.classes)

    def held(self, classes: int) -> list[int]:
        """How many there are of each of the first so many classes."""
        return self.classes.bincount(minlength=classes).tolist()

    def shrink(self, counts: Sequence[int]) -> None:
        """Keeps the first so many of each class."""
        if not len(self):
            return
        kept = torch.cat([(self.classes == number).nonzero()[:count, 0] for number, count in enumerate(counts)])
        self.images, self.classes = self.images[kept], self.classes[kept]

    def add(self, images: Tensor, number: int) -> None:
        """Stores images of a class, in their order."""
        numbers = torch.full((len(images),), number, device=images.device)
        self.images = torch.cat([self.images, images]) if len(self) else images.clone()
        self.classes = torch.cat([self.classes.to(images.device), numbers])

    def inputs(
        self, places: Tensor, sequence: TaskSequence, tasks: Sequence[int], generator: torch.Generator | None = None
    ) -> Tensor:
        """The network's input of stored images, preprocessed as in their own task.

        Args:
            places: which [N].
            tasks: those that they may be of.
            generator: for augmentation, as in their own task; None: without.
        """
        images, own = self.images.index_select(0, places), self.tasks(sequence).index_select(0, places)
        x: Tensor | None = None
        for number in tasks:
            task = sequence[number]
            made = task.preprocess(images if generator is None else augmented(images, task.augment, generator))
            x = made if x is None else torch.where((own == number).reshape(-1, *[1] * (made.ndim - 1)), made, x)
        assert x is not None
        return x

    def tasks(self, sequence: TaskSequence) -> Tensor:
        """Of each image [M]."""
        return sequence.task_of_class(self.classes.device).index_select(0, self.classes)

    def labels(self, sequence: TaskSequence) -> Tensor:
        """Of each image [M], as in its task's batches."""
        if sequence.head == "all":
            return self.classes
        task_of_class = sequence.task_of_class(self.classes.device)
        return self.classes - torch.searchsorted(task_of_class, self.tasks(sequence))  # minus the first class of the task

    def state_dict(self) -> dict[str, Tensor]:
        """All that is stored; nothing where that is nothing."""
        return {"images": self.images, "classes": self.classes} if len(self) else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        if state:
            self.images, self.classes = state["images"], state["classes"]

    def to(self, device: torch.device) -> None:
        """Moves all to a device."""
        self.images, self.classes = self.images.to(device), self.classes.to(device)


def even_counts(available: Sequence[int], size: int) -> list[int]:
    """How many images each class may keep: all the same, but for one, unless a class has no more; `size` in all if there are
    so many.

    Args:
        available: of each class.
    """
    level, left, counts = 0, size, [0] * len(available)
    while True:
        more = [number for number, count in enumerate(available) if count > level]
        if not more or left < len(more):
            break
        rise = min(left // len(more), min(available[number] for number in more) - level)
        level, left = level + rise, left - rise * len(more)
    counts = [min(count, level) for count in available]
    for number in more[:left]:
        counts[number] += 1
    return counts
