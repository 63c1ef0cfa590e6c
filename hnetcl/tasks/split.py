"""Split sequences: the classes of one image set, a few at a time."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.registry import register
from hnetcl.tasks.images import Load, listed
from hnetcl.tasks.sequence import Split, Task, TaskSequence, derive_seed, hold_out, require_classes, standardize


@register("task", "split")
def split_sequence(
    load: Load,
    seed: int = 0,
    *,
    dataset: str = "mnist",
    num_tasks: Annotated[int, Ge(1)] = 5,
    classes_per_task: Annotated[int, Ge(2)] = 2,
    class_order: Literal["natural", "random"] = "natural",
    val_size: Annotated[int, Ge(0)] = 500,
) -> TaskSequence:
    """Task t has the classes order[t * classes_per_task : (t + 1) * classes_per_task], relabelled from 0.

    Pixels are standardized by mean and standard deviation of the training images of all tasks, those held out included: classes
    that no task has do not count, and `val_size` moves nothing.

    Args:
        load: name -> images, on the device where they are to be used.
        seed: draws the order and the held-out images.
        dataset: the image set's name.
        class_order: "natural" (0, 1, 2, ...) or "random" (drawn by `seed`).
        val_size: images of every task held out from training for validation.

    Raises:
        ArgumentError: more classes wanted than the set has, or an argument outside its range.

    Source: Zenke et al. 2017, section 5.1 (split MNIST).
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
    order = list(range(total))
    if class_order == "random":
        order = torch.randperm(total, generator=_generator(seed)).tolist()

    def select(pixels: Tensor, labels: Tensor, chosen: list[int]) -> tuple[Tensor, Tensor]:
        matches = labels[:, None] == torch.tensor(chosen, device=labels.device)
        rows = matches.any(1).nonzero().squeeze(1)
        return pixels[rows], matches[rows].int().argmax(1)

    used = order[: num_tasks * classes_per_task]
    preprocess = standardize(select(images.train_images, images.train_labels, used)[0])
    tasks = []
    for t in range(num_tasks):
        chosen = used[t * classes_per_task : (t + 1) * classes_per_task]
        classes = tuple(images.classes[c] for c in chosen)
        whole = Split(*select(images.train_images, images.train_labels, chosen))
        test = Split(*select(images.test_images, images.test_labels, chosen))
        require_classes(images.name, images.origin, f"task {t}", whole, test, classes)
        train, val = hold_out(whole.images, whole.labels, val_size, derive_seed(seed, "validation", t), classes)
        tasks.append(Task(classes, train, val, test, preprocess))
    facts = {"dataset": images.name, "class_order": used, "left_out": list(images.left_out)}
    return TaskSequence(f"split_{images.name}", tuple(tasks), facts, images.origin)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, "class_order"))
