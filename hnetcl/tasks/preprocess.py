"""What is made of images before the network sees them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Preprocess:
    """uint8 [N, C, H, W] -> float32 of the same shape: standardized per channel, then its pixels permuted.

    Args:
        mean, std: [C, 1, 1], of pixels scaled to [0, 1].
        permutation: [H * W] or None.
    """

    mean: Tensor
    std: Tensor
    permutation: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        if self.permutation is not None:
            pixels = images.flatten(2)
            images = pixels.gather(2, self.permutation.expand_as(pixels)).reshape(
                images.shape
            )  # index_select is ten times slower
        return (images.float() / 255).sub_(self.mean).div_(self.std)

    def in_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the network's input, for images of a shape [C, H, W]."""
        return tuple(shape)

    @property
    def facts(self) -> dict[str, Any]:
        """What else pins it, for the manifest (plain JSON values)."""
        return {}


def standardize(images: Tensor) -> Preprocess:
    """Preprocessing by the mean and standard deviation per channel of some images, uint8 [N, C, H, W].

    Both come from exact counts, and are the same on every machine.
    """
    means, stds = [], []
    for c in range(images.shape[1]):
        counts = torch.bincount(images[:, c].flatten(), minlength=256).tolist()
        pixels, total, squares = (sum(n * level**power for level, n in enumerate(counts)) for power in range(3))
        means.append(total / (255 * pixels))
        stds.append(max(1, math.sqrt((pixels * squares - total**2) / pixels**2)) / 255)
    return Preprocess(*(torch.tensor(each, device=images.device).reshape(-1, 1, 1) for each in (means, stds)))
