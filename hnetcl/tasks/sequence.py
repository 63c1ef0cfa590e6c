"""What a task is, and what a sequence of tasks is."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.tasks.sources import Images


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 [N, C, H, W] and their labels int64 [N], on the device where they are used."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def sha256(self) -> str:
        """Of the images' bytes, then the labels' (as int64, little-endian)."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Preprocess:
    """uint8 [N, C, H, W] -> float32 of the same shape: standardized per channel, then its pixels permuted.

    Args:
        mean, std: [C, 1, 1], of pixels scaled to [0, 1].
        permutation: [H * W] or None.
    """

    mean: Tensor
    std: Tensor
    permutation: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        if self.permutation is not None:
            pixels = images.flatten(2)
            images = pixels.gather(2, self.permutation.expand_as(pixels)).reshape(
                images.shape
            )  # index_select is ten times slower
        return (images.float() / 255).sub_(self.mean).div_(self.std)


@dataclass(frozen=True, eq=False)
class Task:
    """One step of a sequence.

    Args:
        classes: names of its classes; label k is classes[k].
        train, val, test: its images.
        preprocess: makes the network's input of them.
        facts: what else pins the task, for the manifest (plain JSON values).
    """

    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    preprocess: Preprocess
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TaskSequence:
    """Tasks in order, all with the same image shape and number of classes.

    Args:
        name: for people.
        tasks: at least one.
        facts: what pins the sequence (plain JSON values).
    """

    name: str
    tasks: tuple[Task, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]

    @property
    def in_shape(self) -> tuple[int, ...]:
        return tuple(self.tasks[0].train.images.shape[1:])

    @property
    def num_classes(self) -> int:
        return len(self.tasks[0].classes)

    def manifest(self) -> dict[str, Any]:
        """All that tells whether two runs saw the same data, as plain JSON values."""
        splits = [{"train": task.train, "val": task.val, "test": task.test} for task in self.tasks]
        # Permuted tasks share their images: each set of images is hashed once.
        digests = {split: split.sha256() for split in {split for named in splits for split in named.values()}}
        tasks = [
            {
                "classes": list(task.classes),
                **task.facts,
                "sizes": {name: len(split) for name, split in named.items()},
                "sha256": {name: digests[split] for name, split in named.items()},
            }
            for task, named in zip(self.tasks, splits, strict=True)
        ]
        return {"name": self.name, **self.facts, "tasks": tasks}


def standardize(images: Images) -> Preprocess:
    """Preprocessing by the training images' own mean and standard deviation per channel."""
    channels = images.train_images.shape[1]
    counts = [torch.bincount(images.train_images[:, c].flatten(), minlength=256).double() for c in range(channels)]
    levels = torch.arange(256, dtype=torch.float64, device=images.train_images.device) / 255
    mean = torch.stack([(count * levels).sum() / count.sum() for count in counts])
    square = torch.stack([(count * levels**2).sum() / count.sum() for count in counts])
    std = (square - mean**2).sqrt().clamp_min(1 / 255)
    return Preprocess(mean.float().reshape(-1, 1, 1), std.float().reshape(-1, 1, 1))


def hold_out(images: Tensor, labels: Tensor, val_size: int, seed: int) -> tuple[Split, Split]:
    """Training and validation images: `val_size` of them, drawn by `seed`, are held out.

    Raises:
        ArgumentError: that would leave none for training.
    """
    if not 0 <= val_size < len(labels):
        raise ArgumentError("val_size", val_size, f"must be from 0 to {len(labels) - 1} (a task has {len(labels)} images)")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    val, train = order[:val_size].sort().values, order[val_size:].sort().values
    return Split(images[train], labels[train]), Split(images[val], labels[val])


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed of its own for each purpose, stable over versions and machines."""
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
