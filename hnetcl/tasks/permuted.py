"""Permuted sequences: one image set, its pixels in another fixed order for every task."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from hnetcl.errors import ArgumentError
from hnetcl.tasks.sequence import Split, Task, TaskSequence, derive_seed, hold_out, standardize
from hnetcl.tasks.sources import Images


def permuted_sequence(
    images: Images, num_tasks: int = 10, padding: int = 2, val_size: int = 500, seed: int = 0
) -> TaskSequence:
    """All tasks share the images and classes; task t permutes the H' x W' pixels of every channel in its own way.

    The images lie in memory once, whatever the number of tasks: batches are permuted as they are drawn.

    Args:
        images: on the device where they are to be used.
        padding: zeros put around each image before the permutation: H' = H + 2 padding.
        val_size: images held out from training for validation, the same for all tasks.
        seed: draws the permutations and the held-out images.

    Raises:
        ArgumentError: an argument outside its range.

    Source: Goodfellow et al. 2014; with padding as in von Oswald et al. 2020, appendix C.
    """
    if num_tasks < 1:
        raise ArgumentError("num_tasks", num_tasks, "must be at least 1")
    if padding < 0:
        raise ArgumentError("padding", padding, "must not be negative")
    preprocess = standardize(images)
    train_images, test_images = (F.pad(x, [padding] * 4) for x in (images.train_images, images.test_images))
    train, val = hold_out(train_images, images.train_labels, val_size, derive_seed(seed, "validation"))
    test = Split(test_images, images.test_labels)
    pixels = train_images.shape[2] * train_images.shape[3]
    tasks = []
    for t in range(num_tasks):
        permutation_seed = derive_seed(seed, "permutation", t)
        permutation = torch.randperm(pixels, generator=torch.Generator().manual_seed(permutation_seed))
        permuted = replace(preprocess, permutation=permutation.to(train_images.device))
        tasks.append(Task(images.classes, train, val, test, permuted, {"permutation_seed": permutation_seed}))
    return TaskSequence(f"permuted_{images.name}", tuple(tasks), {"dataset": images.name, "padding": padding})
