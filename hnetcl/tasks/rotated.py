"""Rotated sequences: one image set, turned by another angle for every task."""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from hnetcl.registry import register
from hnetcl.tasks.augmentation import Augmentation
from hnetcl.tasks.images import Load
from hnetcl.tasks.pixels import Constants, Preprocessing, padded, preprocessing
from hnetcl.tasks.preprocess import Preprocess
from hnetcl.tasks.sequence import TaskSequence
from hnetcl.tasks.task import Split, Task, derive_seed, hold_out, require_classes


@dataclass(frozen=True, eq=False)
class Rotate(Preprocess):
    """Turns images around their centre, as they are drawn, then standardizes them.

    Args:
        angle: in degrees, counter-clockwise. Values between pixels are interpolated bilinearly, those from outside are 0.
    """

    angle: float = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        if not self.angle:
            return super().__call__(images)
        height, width = images.shape[2:]
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        matrix = [[cos, -sin * height / width, 0], [sin * width / height, cos, 0]]  # coordinates are from -1 to 1 on each axis
        theta = torch.tensor([matrix], device=images.device).expand(images.shape[0], 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        turned: Tensor = F.grid_sample(images.float(), grid, align_corners=False)
        return super().__call__(turned)


@register("task", "rotated")
def rotated_sequence(
    load: Load,
    seed: int = 0,
    *,
    dataset: str = "mnist",
    num_tasks: Annotated[int, Ge(1)] = 10,
    max_angle: Annotated[float, Gt(0), Le(360)] = 180.0,
    angles: Literal["even", "random"] = "even",
    padding: Annotated[int, Ge(0)] = 0,
    preprocess: Preprocessing = "standardized",
    mean: Constants = None,
    std: Constants = None,
    augment: Augmentation = "none",
    val_size: Annotated[int, Ge(0)] = 500,
) -> TaskSequence:
    """All tasks share the images and classes; task t turns them by an angle of its own.

    The images lie in memory once, whatever the number of tasks: batches are turned as they are drawn. Pixels are standardized
    by mean and standard deviation of all training images as they are, those held out included.

    Args:
        load: name -> images, on the device where they are to be used.
        seed: draws the angles and the held-out images.
        dataset: the image set's name.
        max_angle: in degrees; angles are from 0 to below it.
        angles: "even", task t turns by t max_angle / num_tasks; "random", drawn for each task by `seed`.
        padding: zeros put around each image before anything else.
        preprocess, mean, std: see `preprocessing`.
        augment: see `augmented`; before the rotation.
        val_size: images held out from training for validation, the same for all tasks.

    Raises:
        ArgumentError: an argument outside its range.

    Source: Lopez-Paz & Ranzato 2017 (arXiv:1706.08840), section 5.1, whose angles are random and below 180 degrees.
    """
    images = load(dataset)
    train_images, test_images = padded([images.train_images, images.test_images], padding)
    train, test = Split(train_images, images.train_labels), Split(test_images, images.test_labels)
    require_classes(images.name, images.origin, "task 0", train, test, images.classes)
    standard = preprocessing(images.train_images, preprocess, mean, std)
    train, val = hold_out(*(train.images, train.labels), val_size, derive_seed(seed, "validation"), images.classes)
    tasks = []
    for t in range(num_tasks):
        angle = max_angle * t / num_tasks
        if angles == "random":
            generator = torch.Generator().manual_seed(derive_seed(seed, "angle", t))
            angle = max_angle * torch.rand((), generator=generator, dtype=torch.float64).item()
        turned = Rotate(**{field.name: getattr(standard, field.name) for field in fields(standard)}, angle=angle)
        tasks.append(Task(images.classes, train, val, test, turned, {"angle": angle}, augment))
    facts = {"dataset": images.name, "left_out": list(images.left_out)} | ({"padding": padding} if padding else {})
    return TaskSequence(f"rotated_{images.name}", tuple(tasks), facts, images.origin)
