"""What a task is, and what a sequence of tasks is."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.tasks.images import listed

Head = Literal["task", "shared", "all"]
ActiveClasses = Literal["all", "seen", "current"]


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
    """Tasks in order, all with the same image shape and number of classes K.

    Args:
        name: for people.
        tasks: at least one, each a classification: of two classes at least, all with training and with test images.
        facts: what pins the sequence (plain JSON values).
        origin: where the images come from, for messages.
        head: which logits a network has for them. "task": K, those of one task at a time. "shared": K, the same for all tasks.
            "all": T x K, where class k of task t has the label t K + k.

    Raises:
        ArgumentError: the tasks are not like that.
    """

    name: str
    tasks: tuple[Task, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    origin: str = ""
    head: Head = "task"

    def __post_init__(self) -> None:
        dataset = self.facts.get("dataset", self.name)
        if not self.tasks:
            raise ArgumentError("num_tasks", 0, "must be at least 1")
        shapes = {(*split.images.shape[1:], len(task.classes)) for task in self.tasks for split in (task.train, task.test)}
        if len(shapes) > 1:
            found = f"[C, H, W, classes] are {sorted(shapes)}"
            raise ArgumentError("dataset", dataset, f"{found}, but must be the same in all tasks and splits")
        done: set[tuple[Split, Split, tuple[str, ...]]] = set()  # permuted tasks share their images: they are looked at once
        for number, task in enumerate(self.tasks):
            look = task.train, task.test, task.classes
            if look not in done:
                require_classes(dataset, self.origin, f"task {number}", *look)
            done.add(look)

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

    @property
    def num_outputs(self) -> int:
        """Logits that a network has."""
        return self.num_classes * (len(self) if self.head == "all" else 1)

    def first_output(self, task: int) -> int:
        """The logit of a task's class 0."""
        return self.num_classes * task if self.head == "all" else 0

    def active(self, classes: ActiveClasses, task: int, labels: Tensor) -> Tensor | None:
        """Which logits a loss looks at; None for all.

        Args:
            classes: "all"; "seen", those of the tasks so far; "current", of each sample those of its own task.
            task: the newest.
            labels: of a batch [N].

        Returns:
            bool [T K], or [N, T K] for "current".
        """
        if self.head != "all" or classes == "all":
            return None
        outputs = torch.arange(self.num_outputs, device=labels.device) // self.num_classes
        return outputs <= task if classes == "seen" else outputs == (labels // self.num_classes)[:, None]

    def manifest(self) -> dict[str, Any]:
        """All that tells whether two runs saw the same data, as plain JSON values."""
        splits = [{"train": task.train, "val": task.val, "test": task.test} for task in self.tasks]
        # Permuted tasks share their images: each set of images is hashed once.
        digests = {split: split.sha256() for split in {split for named in splits for split in named.values()}}
        tasks = [
            {
                "classes": list(task.classes),
                **task.facts,
                "shape": list(task.train.images.shape[1:]),
                "mean": task.preprocess.mean.flatten().tolist(),
                "std": task.preprocess.std.flatten().tolist(),
                "sizes": {name: len(split) for name, split in named.items()},
                "sha256": {name: digests[split] for name, split in named.items()},
            }
            for task, named in zip(self.tasks, splits, strict=True)
        ]
        return {"name": self.name, **self.facts, "tasks": tasks}


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


def standardize(images: Tensor) -> Preprocess:
    """Preprocessing by the mean and standard deviation per channel of some images, uint8 [N, C, H, W].

    Both come from exact counts, and are the same on every machine.
    """
    means, stds = [], []
    for c in range(images.shape[1]):
        counts = torch.bincount(images[:, c].flatten(), minlength=256).tolist()
        pixels, total, squares = (sum(n * level**power for level, n in enumerate(counts)) for power in range(3))
        means.append(total / (255 * pixels))
        stds.append(max(1, math.sqrt((pixels * squares - total**2) / pixels**2)) / 255)
    return Preprocess(*(torch.tensor(each, device=images.device).reshape(-1, 1, 1) for each in (means, stds)))


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
