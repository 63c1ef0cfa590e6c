"""Permuted sequences: one image set, its pixels in another fixed order for every task."""

from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge

from hnetcl.memory import require
from hnetcl.registry import register
from hnetcl.tasks.images import Load
from hnetcl.tasks.sequence import Split, Task, TaskSequence, derive_seed, hold_out, require_classes, standardize


@register("task", "permuted")
def permuted_sequence(
    load: Load,
    seed: int = 0,
    *,
    dataset: str = "mnist",
    num_tasks: Annotated[int, Ge(1)] = 10,
    padding: Annotated[int, Ge(0)] = 2,
    val_size: Annotated[int, Ge(0)] = 500,
) -> TaskSequence:
    """All tasks share the images and classes; task t permutes the H' x W' pixels of every channel in its own way.

    The images lie in memory once, whatever the number of tasks: batches are permuted as they are drawn. Pixels are standardized
    by mean and standard deviation of all training images, those held out included, without the padding.

    Args:
        load: name -> images, on the device where they are to be used.
        seed: draws the permutations and the held-out images.
        dataset: the image set's name.
        padding: zeros put around each image before the permutation: H' = H + 2 padding.
        val_size: images held out from training for validation, the same for all tasks.

    Raises:
        ArgumentError: an argument outside its range.

    Source: Goodfellow et al. 2014; with padding as in von Oswald et al. 2020, appendix C.
    """
    images = load(dataset)
    whole = Split(images.train_images, images.train_labels), Split(images.test_images, images.test_labels)
    require_classes(images.name, images.origin, "task 0", *whole, images.classes)
    height, width = (size + 2 * padding for size in images.train_images.shape[2:])
    each = images.train_images.shape[1] * height * width
    require("padding", padding, 2 * each * (len(whole[0]) + len(whole[1])))  # padded, and then without those held out
    require("num_tasks", num_tasks, 8 * num_tasks * (height * width + num_tasks))  # permutations, and R
    preprocess = standardize(images.train_images)
    train_images, test_images = (F.pad(x, [padding] * 4) for x in (images.train_images, images.test_images))
    train, val = hold_out(train_images, images.train_labels, val_size, derive_seed(seed, "validation"), images.classes)
    test = Split(test_images, images.test_labels)
    pixels = train_images.shape[2] * train_images.shape[3]
    tasks = []
    for t in range(num_tasks):
        permutation_seed = derive_seed(seed, "permutation", t)
        permutation = torch.randperm(pixels, generator=torch.Generator().manual_seed(permutation_seed))
        permuted = replace(preprocess, permutation=permutation.to(train_images.device))
        tasks.append(Task(images.classes, train, val, test, permuted, {"permutation_seed": permutation_seed}))
    facts = {"dataset": images.name, "padding": padding, "left_out": list(images.left_out)}
    return TaskSequence(f"permuted_{images.name}", tuple(tasks), facts, images.origin)
