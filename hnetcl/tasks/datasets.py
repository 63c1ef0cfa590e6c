"""Tasks of anybody's datasets."""

from collections.abc import Iterable, Sequence, Sized
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from hnetcl.errors import ArgumentError, one_line
from hnetcl.registry import checking
from hnetcl.tasks.augmentation import Augmentation
from hnetcl.tasks.images import Images, image_set
from hnetcl.tasks.pictures import grey_repeated, pixels_of
from hnetcl.tasks.pixels import Constants, Preprocessing, preprocessing
from hnetcl.tasks.task import Task, split_tasks


@checking
def tasks_of(
    train: Iterable[Any],
    test: Iterable[Any],
    *,
    name: str,
    classes: Sequence[str] | None,
    val_size: int,
    seed: int,
    preprocess: Preprocessing,
    mean: Constants,
    std: Constants,
    augment: Augmentation,
    device: torch.device | str | None,
) -> tuple[Task, ...]:
    """See `TaskSequence.from_datasets`."""
    pairs = [list(train), list(test)]
    if len(pairs[0]) != len(pairs[1]):
        raise ArgumentError("test", f"{len(pairs[1])} datasets", f"must be as many as the {len(pairs[0])} of train")
    if not pairs[0]:
        raise ArgumentError("train", [], "holds no datasets, one for each task")
    sets = []
    for number, (own, held) in enumerate(zip(*pairs, strict=True)):
        tensors = {}
        for split, dataset in (("train", own), ("test", held)):
            tensors[f"{split}_images"], tensors[f"{split}_labels"] = _read(dataset, f"{split}[{number}]")
        try:
            made = image_set(f"task {number}", tensors, classes)
            sets.append(made if device is None else made.to(torch.device(device)))
        except ArgumentError as error:
            raise ArgumentError("train", f"task {number}", error.allowed) from error
    return _joined(sets, name, preprocess, mean, std, augment, val_size, seed)


def _joined(
    sets: Sequence[Images],
    name: str,
    preprocess: Preprocessing,
    mean: Constants,
    std: Constants,
    augment: Augmentation,
    val_size: int,
    seed: int,
) -> tuple[Task, ...]:
    shapes = {tuple(each.train_images.shape[1:]) for each in sets}
    if len(shapes) > 1:
        raise ArgumentError("train", name, f"[C, H, W] are {sorted(shapes)}, but must be the same in all tasks")
    pixels = preprocessing(torch.cat([each.train_images for each in sets]), preprocess, mean, std)
    tasks = []
    for number, each in enumerate(sets):
        groups = [range(len(each.classes))]
        tasks += split_tasks(each, groups, pixels, 0, augment, val_size, seed, number)
    return tuple(tasks)


def _read(dataset: Any, place: str) -> tuple[Tensor, Tensor]:
    """All images uint8 [N, C, H, W] of a dataset and their labels [N].

    Raises:
        ArgumentError: it has no length, is empty, or an item is not an image and its label.
    """
    if not isinstance(dataset, Sized):
        raise ArgumentError(place, type(dataset).__name__, "has no length; allowed: datasets of items by number")
    if not len(dataset):
        raise ArgumentError(place, type(dataset).__name__, "is empty")
    if type(dataset) is TensorDataset and len(dataset.tensors) > 1 and dataset.tensors[0].dtype == torch.uint8:
        whole, labels_of = dataset.tensors[:2]  # item after item would take a second for a hundred thousand
        if whole.ndim == 4 and labels_of.ndim == 1 and not (labels_of.is_floating_point() or labels_of.is_complex()):
            return whole, labels_of.long()
    images, labels = [], []
    for number in range(len(dataset)):
        item = dataset[number]
        try:
            image, label = islice(item, 2)
            images.append(pixels_of(image))
            labels.append(_whole(label))
        except (TypeError, ValueError, OverflowError) as error:
            rule = f"{one_line(error)}; an item is (image, label, ...)"
            raise ArgumentError(f"{place}[{number}]", type(item).__name__, rule) from error
    channels = max(each.shape[0] for each in images)
    images = [grey_repeated(each, channels) for each in images]
    odd = next((n for n, each in enumerate(images) if each.shape != images[0].shape), None)
    if odd is not None:
        rule = f"is of shape {tuple(images[odd].shape)}, but image 0 of {tuple(images[0].shape)}"
        raise ArgumentError(f"{place}[{odd}]", "image", rule)
    return torch.stack(images), torch.tensor(labels)


def _whole(label: Any) -> int:
    """A label as a number.

    Raises:
        ValueError: it is no whole number that int64 holds.
    """
    number = int(label)
    if isinstance(label, str | bytes) or not bool(number == label) or abs(number) > torch.iinfo(torch.int64).max:
        raise ValueError(f"has the label {label!r}, which is no whole number")
    return number
