"""What is made of the pixels before the network sees them: the keys that sequences share."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.memory import require
from hnetcl.tasks.preprocess import Preprocess, standardize

Preprocessing = Literal["standardized", "none", "constants"]
"""Pixels are scaled to [0, 1]; then "standardized" by mean and standard deviation of training images, left as they are, or
standardized by given constants."""
Constants = float | list[float] | None
"""One number, or one for each channel."""


def preprocessing(images: Tensor, kind: Preprocessing, mean: Constants, std: Constants) -> Preprocess:
    """How the network's input is made.

    Args:
        images: training images uint8 [N, C, H, W], whose pixels "standardized" goes by.
        mean, std: of pixels scaled to [0, 1], for "constants".

    Raises:
        ArgumentError: constants that are missing, or would go unused; not one for each channel; or a std that is not above 0.
    """
    given = {"mean": mean, "std": std}
    for name, value in given.items():
        if (value is None) == (kind == "constants"):
            rule = "is missing with preprocess=constants" if value is None else f"goes unused with preprocess={kind}"
            raise ArgumentError(name, value, rule)
    if kind == "standardized":
        return standardize(images)
    channels = images.shape[1]
    made = []
    for name, value in ({"mean": 0.0, "std": 1.0} if kind == "none" else given).items():
        values = [float(each) for each in value] if isinstance(value, list) else [float(value or 0.0)] * channels
        if len(values) != channels:
            raise ArgumentError(name, value, f"must be one number, or {channels}: one for each channel")
        held = torch.tensor(values, dtype=torch.float32, device=images.device)
        if name == "std" and (min(values) <= 0 or not held.reciprocal().isfinite().all()):
            raise ArgumentError(name, value, "must be greater than 0, in float32 too")
        if not held.isfinite().all():
            raise ArgumentError(name, value, "must be a number that float32 holds")
        made.append(held.reshape(-1, 1, 1))
    return Preprocess(*made)


def padded(images: Sequence[Tensor], padding: int) -> list[Tensor]:
    """Images uint8 [N, C, H, W] with so many zeros around each: [N, C, H + 2 padding, W + 2 padding].

    Raises:
        ArgumentError: they don't fit into memory.
    """
    if not padding:
        return list(images)
    sizes = [each.shape[0] * each.shape[1] * (each.shape[2] + 2 * padding) * (each.shape[3] + 2 * padding) for each in images]
    require("padding", padding, 2 * sum(sizes))  # padded, and then without those held out
    return [F.pad(each, [padding] * 4) for each in images]
