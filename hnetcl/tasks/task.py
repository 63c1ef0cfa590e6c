"""What a task is, and how the classes of an image set become tasks."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.tasks.augmentation import Augmentation
from hnetcl.tasks.images import Images, listed
from hnetcl.tasks.pixels import padded
from hnetcl.tasks.preprocess import Preprocess


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 [N, C, H, W] and their labels int64 [N], on the device where they are used.

    Points of D numbers are float32 [N, D, 1, 1], see `AsTheyAre`. The labels of a regression are its targets, float32 [N].
    """

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
class Task:
    """One step of a sequence.

    Args:
        classes: names of its classes; label k is classes[k]. Of a regression, the name of its one output.
        train, val, test: its images.
        preprocess: makes the network's input of them.
        augment: what is done to training images before that, whenever they are drawn, see `augmented`.
        facts: what else pins the task, for the manifest (plain JSON values).
    """

    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    preprocess: Preprocess
    facts: dict[str, Any] = field(default_factory=dict)
    augment: Augmentation = "none"

    @property
    def in_shape(self) -> tuple[int, ...]:
        """[C, H, W] of the network's input."""
        return self.preprocess.in_shape(self.train.images.shape[1:])


def selected(pixels: Tensor, labels: Tensor, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The images of some classes, and their labels from 0, in the order of `chosen`."""
    matches = labels[:, None] == torch.tensor(chosen, device=labels.device)
    rows = matches.any(1).nonzero().squeeze(1)
    return pixels[rows], matches[rows].int().argmax(1)


def split_tasks(
    images: Images,
    groups: Sequence[Sequence[int]],
    pixels: Preprocess,
    padding: int,
    augment: Augmentation,
    val_size: int,
    seed: int,
    first: int = 0,
) -> list[Task]:
    """A task for each group of classes of an image set; the rest as in `split_sequence`.

    Args:
        first: the number of the first of these tasks in its sequence.

    Raises:
        ArgumentError: a class without images, or a `val_size` that leaves too few for training.
    """
    train_images, test_images = padded([images.train_images, images.test_images], padding)
    tasks = []
    for t, chosen in enumerate(groups, first):
        classes = tuple(images.classes[c] for c in chosen)
        whole = Split(*selected(train_images, images.train_labels, chosen))
        test = Split(*selected(test_images, images.test_labels, chosen))
        require_classes(images.name, images.origin, f"task {t}", whole, test, classes)
        train, val = hold_out(whole.images, whole.labels, val_size, derive_seed(seed, "validation", t), classes)
        tasks.append(Task(classes, train, val, test, pixels, augment=augment))
    return tasks


def require_classes(dataset: str, origin: str, who: str, train: Split, test: Split, classes: Sequence[str]) -> None:
    """Refuses what is no classification, or could not be learned or measured.

    Raises:
        ArgumentError: fewer than two classes; a class without training or without test images; a label of no class.
    """
    what = f"{origin or dataset}: {who}"
    if len(classes) < 2:
        raise ArgumentError("dataset", dataset, f"{what} has one class, but a classification needs two")
    for kind, split in (("training", train), ("test", test)):
        highest = int(split.labels.max()) if len(split) else 0
        if highest >= len(classes):
            raise ArgumentError("dataset", dataset, f"{what} has {len(classes)} classes, but {kind} labels up to {highest}")
        lacking = [classes[k] for k in _lacking(split.labels, len(classes))]
        if lacking:
            raise ArgumentError("dataset", dataset, f"{what} has no {kind} images of {listed(lacking)}")


def _lacking(labels: Tensor, classes: int) -> list[int]:
    """The classes that no label names."""
    return (labels.bincount(minlength=classes) == 0).nonzero().flatten().tolist()


def hold_out(images: Tensor, labels: Tensor, val_size: int, seed: int, classes: Sequence[str]) -> tuple[Split, Split]:
    """Training and validation images: `val_size` of them, drawn by `seed`, are held out.

    Raises:
        ArgumentError: that would leave fewer than two images for training (batch norm needs two), or a class without any.
    """
    most = max(0, len(labels) - 2)
    if not 0 <= val_size <= most:
        raise ArgumentError("val_size", val_size, f"must be from 0 to {most} (a task has {len(labels)} images)")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    val, train = order[:val_size].sort().values, order[val_size:].sort().values
    lost = [classes[k] for k in _lacking(labels[train], len(classes)) if k not in _lacking(labels, len(classes))]
    if lost:
        raise ArgumentError("val_size", val_size, f"leaves no training images of {listed(lost)}")
    return Split(images[train], labels[train]), Split(images[val], labels[val])


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed of its own for each purpose, stable over versions and machines."""
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
