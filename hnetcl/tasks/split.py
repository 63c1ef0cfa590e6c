"""Split sequences: the classes of one image set, a few at a time."""

from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.registry import register
from hnetcl.tasks.images import Images, Load, listed
from hnetcl.tasks.pixels import Constants, Preprocessing, padded, preprocessing
from hnetcl.tasks.sequence import Split, Task, TaskSequence, derive_seed, hold_out, require_classes


@register("task", "split")
def split_sequence(
    load: Load,
    seed: int = 0,
    *,
    dataset: str = "mnist",
    num_tasks: Annotated[int, Ge(1)] = 5,
    classes_per_task: Annotated[int, Ge(2)] = 2,
    class_order: Literal["natural", "random", "icarl"] | list[int] = "natural",
    padding: Annotated[int, Ge(0)] = 0,
    preprocess: Preprocessing = "standardized",
    mean: Constants = None,
    std: Constants = None,
    val_size: Annotated[int, Ge(0)] = 500,
) -> TaskSequence:
    """Task t has the classes order[t * classes_per_task : (t + 1) * classes_per_task], relabelled from 0.

    Pixels are standardized by mean and standard deviation of the training images of all tasks, those held out included: classes
    that no task has do not count, `padding` and `val_size` move nothing. Within a task images keep the order of the image set.

    Args:
        load: name -> images, on the device where they are to be used.
        seed: draws the order and the held-out images.
        dataset: the image set's name.
        class_order: "natural" (0, 1, 2, ...), "random" (drawn by `seed`), "icarl" (that of iCaRL's experiments: numpy's shuffle
            by the seed 1993), or the numbers of the classes, all different.
        padding: zeros put around each image before anything else.
        preprocess, mean, std: see `preprocessing`.
        val_size: images of every task held out from training for validation.

    Raises:
        ArgumentError: more classes wanted than the set has, or an argument outside its range.

    Sources: Zenke et al. 2017, section 5.1 (split MNIST); Rebuffi et al. 2017 (arXiv:1611.07725), section 4.1, on the order.
    """
    images = load(dataset)
    total = len(images.classes)
    if classes_per_task > total:
        raise ArgumentError("classes_per_task", classes_per_task, f"must be from 2 to {total}, the classes of {images.name}")
    if num_tasks * classes_per_task > total:
        most = total // classes_per_task
        left_out = f"; it has no training images of {listed(images.left_out)}" if images.left_out else ""
        rule = f"must be from 1 to {most}: {images.name} has {total} classes, {classes_per_task} a task{left_out}"
        raise ArgumentError("num_tasks", num_tasks, rule)
    order = _order(class_order, seed, images, num_tasks * classes_per_task)

    def select(pixels: Tensor, labels: Tensor, chosen: list[int]) -> tuple[Tensor, Tensor]:
        matches = labels[:, None] == torch.tensor(chosen, device=labels.device)
        rows = matches.any(1).nonzero().squeeze(1)
        return pixels[rows], matches[rows].int().argmax(1)

    used = order[: num_tasks * classes_per_task]
    pixels = preprocessing(select(images.train_images, images.train_labels, used)[0], preprocess, mean, std)
    train_images, test_images = padded([images.train_images, images.test_images], padding)
    tasks = []
    for t in range(num_tasks):
        chosen = used[t * classes_per_task : (t + 1) * classes_per_task]
        classes = tuple(images.classes[c] for c in chosen)
        whole = Split(*select(train_images, images.train_labels, chosen))
        test = Split(*select(test_images, images.test_labels, chosen))
        require_classes(images.name, images.origin, f"task {t}", whole, test, classes)
        train, val = hold_out(whole.images, whole.labels, val_size, derive_seed(seed, "validation", t), classes)
        tasks.append(Task(classes, train, val, test, pixels))
    facts: dict[str, Any] = {"dataset": images.name, "class_order": used, "left_out": list(images.left_out)}
    facts |= {"padding": padding} if padding else {}
    return TaskSequence(f"split_{images.name}", tuple(tasks), facts, images.origin)


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
