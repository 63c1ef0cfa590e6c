"""Mixed sequences: the tasks of several image sets, one set after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le, Len

from hnetcl.errors import ArgumentError
from hnetcl.memory import require
from hnetcl.registry import register
from hnetcl.tasks.augmentation import Augmentation
from hnetcl.tasks.images import Images, Load
from hnetcl.tasks.pictures import brought_to, grey_repeated
from hnetcl.tasks.pixels import Constants, Preprocessing, preprocessing
from hnetcl.tasks.sequence import TaskSequence
from hnetcl.tasks.task import Task, selected, split_tasks

Groups = list[list[int]]
"""The classes of each task of an image set."""


@register("task", "mixed")
def mixed_sequence(
    load: Load,
    seed: int = 0,
    *,
    datasets: Annotated[Sequence[str], Len(1)] = ("mnist", "fashion_mnist"),
    classes_per_task: Annotated[int, Ge(2)] | None = None,
    fit: Literal["pad", "resize"] = "pad",
    size: Annotated[int, Ge(1)] | None = None,
    padding: Annotated[int, Ge(0)] = 0,
    preprocess: Preprocessing = "standardized",
    mean: Constants = None,
    std: Constants = None,
    augment: Augmentation = "none",
    val_size: Annotated[int, Ge(0)] = 500,
) -> TaskSequence:
    """Each image set is a task with all of its classes, or several tasks.

    Images are brought to one shape: to the largest height and width of the sets, and to colours where a set has them, grey
    images with their channel three times. Pixels are standardized by those of all sets together, so that constants do not tell
    the task.

    Args:
        load: name -> images, on the device where they are to be used.
        seed: draws the held-out images.
        datasets: names of image sets, in order.
        classes_per_task: None: all. Else every set is split into tasks of that many; classes that are left do not count.
        fit: "pad": with zeros around; "resize": bilinearly.
        size: height and width, in place of the largest.
        padding: zeros put around each image after that.
        preprocess, mean, std: see `preprocessing`.
        augment: see `augmented`.
        val_size: images of every task held out from training for validation.

    Raises:
        ArgumentError: sets of neither one nor the same number of channels, images that are too large to be padded, or an
            argument outside its range.
    """
    try:
        loaded = [load(name) for name in datasets]
    except ArgumentError as error:
        raise ArgumentError("datasets" if error.name == "dataset" else error.name, error.value, error.allowed) from error
    sets = in_one_shape(loaded, fit, size)
    groups = []
    for each in sets:
        total = len(each.classes)
        every = total if classes_per_task is None else classes_per_task
        if every > total:
            raise ArgumentError("classes_per_task", every, f"must be from 2 to {total}, the classes of {each.name}")
        groups.append([list(range(first, first + every)) for first in range(0, total - every + 1, every)])
    name = "mixed_" + "_".join(datasets)
    facts = {"datasets": list(datasets), "fit": fit, "padding": padding}
    return joined(name, sets, groups, facts, (preprocess, mean, std), padding, augment, val_size, seed)


@register("task", "split_cifar10_100")
def split_cifar10_100_sequence(
    load: Load,
    seed: int = 0,
    *,
    num_tasks: Annotated[int, Ge(2), Le(11)] = 6,
    padding: Annotated[int, Ge(0)] = 0,
    preprocess: Preprocessing = "standardized",
    mean: Constants = None,
    std: Constants = None,
    augment: Augmentation = "none",
    val_size: Annotated[int, Ge(0)] = 500,
) -> TaskSequence:
    """CIFAR-10, then ten classes of CIFAR-100 at a time, in the order of their numbers.

    Pixels are standardized by the training images of all tasks together. The sets are "cifar10" and "cifar100" of `load`.

    Args:
        num_tasks: five times ten classes of CIFAR-100 in the published six tasks.
        seed, padding, preprocess, mean, std, augment, val_size: as in `mixed_sequence`.

    Raises:
        ArgumentError: an argument outside its range, or sets that have too few classes.

    Source: Zenke et al. 2017 (arXiv:1703.04200), section 5.2.
    """
    sets = [load(name) for name in ("cifar10", "cifar100")]
    for each, needed in zip(sets, (10, 10 * (num_tasks - 1)), strict=True):
        if len(each.classes) < needed:
            raise ArgumentError("dataset", each.name, f"has {len(each.classes)} classes, but the tasks have {needed}")
    rest = [list(range(first, first + 10)) for first in range(0, 10 * (num_tasks - 1), 10)]
    facts = {"datasets": [each.name for each in sets], "padding": padding}
    constants = preprocess, mean, std
    return joined("split_cifar10_100", sets, [[list(range(10))], rest], facts, constants, padding, augment, val_size, seed)


def joined(
    name: str,
    sets: Sequence[Images],
    groups: Sequence[Groups],
    facts: Mapping[str, Any],
    constants: tuple[Preprocessing, Constants, Constants],
    padding: int,
    augment: Augmentation,
    val_size: int,
    seed: int,
) -> TaskSequence:
    """The tasks of each set, one set after the other; the rest as in `mixed_sequence`."""
    used = [
        selected(each.train_images, each.train_labels, [c for group in own for c in group])[0]
        for each, own in zip(sets, groups, strict=True)
    ]
    pixels = preprocessing(torch.cat(used), *constants)
    tasks: list[Task] = []
    for each, own in zip(sets, groups, strict=True):
        made = split_tasks(each, own, pixels, padding, augment, val_size, seed, len(tasks))
        tasks += [replace(task, facts={"dataset": each.name}) for task in made]
    return TaskSequence(name, tuple(tasks), dict(facts), ", ".join(dict.fromkeys(each.origin or each.name for each in sets)))


def in_one_shape(sets: Sequence[Images], fit: str, size: int | None) -> list[Images]:
    """Image sets, all of whose images have the same shape."""
    channels = max(each.train_images.shape[1] for each in sets)
    odd = [each for each in sets if each.train_images.shape[1] not in (1, channels)]
    if odd:
        rule = f"has {odd[0].train_images.shape[1]} channels, and another set {channels}; allowed: 1, or as many as all others"
        raise ArgumentError("datasets", odd[0].name, rule)
    height, width = (size or max(each.train_images.shape[place] for each in sets) for place in (2, 3))
    number = sum(len(each.train_images) + len(each.test_images) for each in sets)
    require("datasets", [each.name for each in sets], 2.0 * number * channels * height * width)
    made = []
    for each in sets:
        try:
            fitted = [
                grey_repeated(brought_to(images, height, width, fit), channels)
                for images in (each.train_images, each.test_images)
            ]
        except ValueError as error:
            raise ArgumentError("size", size, f"{each.name} {error}; allowed: a larger size, or fit=resize") from error
        made.append(replace(each, train_images=fitted[0], test_images=fitted[1]))
    return made
