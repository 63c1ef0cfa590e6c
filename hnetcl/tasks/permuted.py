"""Permuted sequences: one image set, its pixels in another fixed order for every task."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.memory import require
from hnetcl.registry import register
from hnetcl.tasks.augmentation import Augmentation
from hnetcl.tasks.images import Load
from hnetcl.tasks.pixels import Constants, Preprocessing, padded, preprocessing
from hnetcl.tasks.sequence import TaskSequence
from hnetcl.tasks.task import Split, Task, derive_seed, hold_out, require_classes


@register("task", "permuted")
def permuted_sequence(
    load: Load,
    seed: int = 0,
    *,
    dataset: str = "mnist",
    num_tasks: Annotated[int, Ge(1)] = 10,
    first: Literal["permuted", "identity"] = "permuted",
    permutations: Literal["own", "avalanche", "continuum"] = "own",
    padding: Annotated[int, Ge(0)] = 2,
    preprocess: Preprocessing = "standardized",
    mean: Constants = None,
    std: Constants = None,
    augment: Augmentation = "none",
    val_size: Annotated[int, Ge(0)] = 500,
) -> TaskSequence:
    """All tasks share the images and classes; task t permutes the H' x W' pixels of every channel in its own way.

    The images lie in memory once, whatever the number of tasks: batches are permuted as they are drawn. Pixels are standardized
    by mean and standard deviation of all training images, those held out included, without the padding.

    Args:
        load: name -> images, on the device where they are to be used.
        seed: draws the permutations and the held-out images.
        dataset: the image set's name.
        first: "identity": task 0 has the images as they are.
        permutations: "own"; or, to the same pixels, those that Avalanche's `PermutedMNIST(seed=seed)` or Continuum's
            `Permutations(seed=seed)` draws, whose task 0 has the images as they are. Of grey images only: elsewhere colours
            stay with their pixel here, and not there.
        padding: zeros put around each image before the permutation: H' = H + 2 padding.
        preprocess, mean, std: see `preprocessing`.
        augment: see `augmented`; before the permutation.
        val_size: images held out from training for validation, the same for all tasks.

    Raises:
        ArgumentError: an argument outside its range.

    Source: Goodfellow et al. 2014; with padding as in von Oswald et al. 2020, appendix C.
    """
    images = load(dataset)
    whole = Split(images.train_images, images.train_labels), Split(images.test_images, images.test_labels)
    require_classes(images.name, images.origin, "task 0", *whole, images.classes)
    if permutations != "own" and images.train_images.shape[1] != 1:
        rule = f"is for grey images; {images.name} has {images.train_images.shape[1]} channels, allowed with it: own"
        raise ArgumentError("permutations", permutations, rule)
    if permutations == "continuum" and first == "permuted":
        raise ArgumentError("first", first, "Continuum's first task has the images as they are; allowed with it: identity")
    train_images, test_images = padded([images.train_images, images.test_images], padding)
    height, width = train_images.shape[2:]
    require("num_tasks", num_tasks, 8 * num_tasks * (height * width + num_tasks))  # permutations, and R
    standard = preprocessing(images.train_images, preprocess, mean, std)
    train, val = hold_out(train_images, images.train_labels, val_size, derive_seed(seed, "validation"), images.classes)
    test = Split(test_images, images.test_labels)
    tasks = []
    for t, (permutation, facts) in enumerate(_permutations(permutations, seed, num_tasks, height * width)):
        if t == 0 and first == "identity":
            permutation, facts = None, {"permutation": "identity"}
        own = replace(standard, permutation=None if permutation is None else permutation.to(train_images.device))
        tasks.append(Task(images.classes, train, val, test, own, facts, augment))
    pinned = {"dataset": images.name, "padding": padding, "left_out": list(images.left_out)}
    pinned |= {} if permutations == "own" else {"permutations": permutations}
    return TaskSequence(f"permuted_{images.name}", tuple(tasks), pinned, images.origin)


def _permutations(kind: str, seed: int, tasks: int, pixels: int) -> Iterator[tuple[Tensor | None, dict[str, Any]]]:
    """A permutation of so many pixels for each task, and what pins it."""
    random = np.random.RandomState(seed)
    if kind == "avalanche":
        for _ in range(tasks):
            yield torch.from_numpy(random.permutation(pixels)), {"permutation_seed": seed}
        return
    if kind == "continuum":
        yield None, {}
        seeds = [int(each) for each in random.permutation(100000)[: tasks - 1]]
    else:
        seeds = [derive_seed(seed, "permutation", t) for t in range(tasks)]
    for each in seeds:
        yield torch.randperm(pixels, generator=torch.Generator().manual_seed(each)), {"permutation_seed": each}
