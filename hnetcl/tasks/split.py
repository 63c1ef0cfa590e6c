"""Split sequences: the classes of one image set, a few at a time."""

from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Len, doc

from hnetcl.errors import ArgumentError
from hnetcl.registry import register
from hnetcl.tasks.augmentation import Augmentation
from hnetcl.tasks.fourier import Transform, transformed
from hnetcl.tasks.images import Images, Load, listed
from hnetcl.tasks.pixels import Constants, Preprocessing, preprocessing
from hnetcl.tasks.sequence import TaskSequence
from hnetcl.tasks.task import derive_seed, selected, split_tasks

ClassesPerTask = Annotated[
    Annotated[int, Ge(2)] | Annotated[list[Annotated[int, Ge(2)]], Len(1)], doc("at least 2, or a list of such numbers")
]


@register("task", "split")
def split_sequence(
    load: Load,
    seed: int = 0,
    *,
    dataset: str = "mnist",
    num_tasks: Annotated[int, Ge(1)] = 5,
    classes_per_task: ClassesPerTask = 2,
    class_order: Literal["natural", "random", "icarl"] | list[int] = "natural",
    padding: Annotated[int, Ge(0)] = 0,
    preprocess: Preprocessing = "standardized",
    mean: Constants = None,
    std: Constants = None,
    transform: Transform = "none",
    augment: Augmentation = "none",
    val_size: Annotated[int, Ge(0)] = 500,
) -> TaskSequence:
    """The classes in order are dealt out to the tasks, `classes_per_task` to each, and relabelled from 0 in each.

    Pixels are standardized by mean and standard deviation of the training images of all tasks, those held out included: classes
    that no task has do not count, `padding` and `val_size` move nothing. Within a task images keep the order of the image set.

    Args:
        load: name -> images, on the device where they are to be used.
        seed: draws the order and the held-out images.
        dataset: the image set's name.
        classes_per_task: a number, or a list with one for each task.
        class_order: "natural" (0, 1, 2, ...), "random" (drawn by `seed`), "icarl" (that of iCaRL's experiments: numpy's shuffle
            by the seed 1993), or the numbers of the classes, all different.
        padding: zeros put around each image before anything else.
        preprocess, mean, std: see `preprocessing`.
        transform: "fourier": the network is given the Fourier transforms of these, complex numbers, see `Fourier`.
        augment: see `augmented`.
        val_size: images of every task held out from training for validation.

    Raises:
        ArgumentError: more classes wanted than the set has, or an argument outside its range.

    Sources: Zenke et al. 2017, section 5.1 (split MNIST); Rebuffi et al. 2017 (arXiv:1611.07725), section 4.1, on the order.
    """
    images = load(dataset)
    sizes = _sizes(classes_per_task, num_tasks, images)
    used = _order(class_order, seed, images, sum(sizes))[: sum(sizes)]
    groups = [used[first:last] for first, last in pairwise(accumulate(sizes, initial=0))]
    pixels = preprocessing(selected(images.train_images, images.train_labels, used)[0], preprocess, mean, std)
    pixels = transformed(pixels, transform)
    tasks = split_tasks(images, groups, pixels, padding, augment, val_size, seed)
    facts: dict[str, Any] = {"dataset": images.name, "class_order": used, "left_out": list(images.left_out)}
    facts |= {"padding": padding} if padding else {}
    kind = "split" if transform == "none" else transform
    return TaskSequence(f"{kind}_{images.name}", tuple(tasks), facts, images.origin)


def _sizes(wanted: int | list[int], num_tasks: int, images: Images) -> list[int]:
    """How many classes each task has."""
    total = len(images.classes)
    left_out = f"; it has no training images of {listed(images.left_out)}" if images.left_out else ""
    if isinstance(wanted, list):
        if len(wanted) != num_tasks:
            raise ArgumentError("classes_per_task", wanted, f"names {len(wanted)} tasks, but num_tasks={num_tasks}")
        if sum(wanted) > total:
            rule = f"are {sum(wanted)} classes, but {images.name} has {total}{left_out}"
            raise ArgumentError("classes_per_task", wanted, rule)
        return wanted
    if wanted > total:
        raise ArgumentError("classes_per_task", wanted, f"must be from 2 to {total}, the classes of {images.name}")
    if num_tasks * wanted > total:
        rule = f"must be from 1 to {total // wanted}: {images.name} has {total} classes, {wanted} a task{left_out}"
        raise ArgumentError("num_tasks", num_tasks, rule)
    return [wanted] * num_tasks


def _order(wanted: str | list[int], seed: int, images: Images, needed: int) -> list[int]:
    """The classes in the order in which tasks take them, `needed` of them at least."""
    total = len(images.classes)
    if isinstance(wanted, list):
        if len(set(wanted)) < len(wanted) or not all(0 <= each < total for each in wanted):
            raise ArgumentError("class_order", wanted, f"must be different numbers from 0 to {total - 1}")
        if len(wanted) < needed:
            raise ArgumentError("class_order", wanted, f"names {len(wanted)} classes, but the tasks have {needed}")
        return wanted
    if wanted == "icarl":
        shuffled = np.arange(total)
        np.random.RandomState(1993).shuffle(shuffled)
        return [int(each) for each in shuffled]
    if wanted == "random":
        drawn: list[int] = torch.randperm(total, generator=_generator(seed)).tolist()
        return drawn
    return list(range(total))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, "class_order"))
