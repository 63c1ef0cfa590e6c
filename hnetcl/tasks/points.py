"""Points that are drawn, the same on every machine: what toys are made of."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hnetcl.tasks.preprocess import Preprocess
from hnetcl.tasks.task import derive_seed

STEP = 2.0**-20  # what machines differ by in cosines and logarithms is far smaller


@dataclass(frozen=True, eq=False)
class AsTheyAre(Preprocess):
    """float32 [N, D, 1, 1] -> the same: points are no images; `mean` is 0 and `std` 1."""

    def __call__(self, images: Tensor) -> Tensor:
        return images


def drawn(seed: int, *names: str | int) -> np.random.Generator:
    """numpy's generator for a purpose, whose stream is the same everywhere."""
    return np.random.default_rng(derive_seed(seed, *names))


def rounded(values: np.ndarray) -> np.ndarray:
    """To multiples of `STEP`, so that hashes are the same everywhere."""
    found: np.ndarray = np.round(values / STEP) * STEP
    return found


def points(values: Any, device: torch.device) -> Tensor:
    """Values [N, D] as a network's input, rounded: float32 [N, D, 1, 1]."""
    return torch.from_numpy(rounded(values).astype(np.float32)).to(device)[:, :, None, None]


def targets(values: Any, device: torch.device) -> Tensor:
    """Values [N] as targets, rounded: float32 [N]."""
    return torch.from_numpy(rounded(values).astype(np.float32)).to(device)


def as_they_are(numbers: int, device: torch.device) -> AsTheyAre:
    """For points of so many numbers."""
    shape = (numbers, 1, 1)
    return AsTheyAre(torch.zeros(shape, device=device), torch.ones(shape, device=device))
