"""Images as complex numbers: their Fourier transforms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hnetcl.tasks.preprocess import Preprocess

Transform = Literal["none", "fourier"]


@dataclass(frozen=True, eq=False)
class Fourier(Preprocess):
    r"""uint8 [N, C, H, W] -> float32 [N, 2 C, H, W]: C complex channels, all real parts before all imaginary ones.

    .. math:: F(u, v) = \frac{1}{\sqrt{H W}} \sum_{x, y} f(x, y) \, e^{-2 \pi i (u x / H + v y / W)}

    of pixels f that are standardized first. The transform keeps lengths (Parseval), so that the mean of |F|^2 is that of f^2:
    1 for standardized pixels. Frequency 0 lies in the middle, at (H // 2, W // 2), with low ones around it. Pixels are real, so
    F(-u, -v) is the conjugate of F(u, v), and half of the numbers tell all.
    """

    def __call__(self, images: Tensor) -> Tensor:
        found = torch.fft.fftshift(torch.fft.fft2(super().__call__(images), norm="ortho"), dim=(-2, -1))
        return torch.cat([found.real, found.imag], 1)

    def in_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return 2 * shape[0], *shape[1:]

    @property
    def facts(self) -> dict[str, Any]:
        return {"transform": "fourier"}

    def pixels(self, x: Tensor) -> Tensor:
        """The inverse: [N, 2 C, H, W] -> standardized pixels [N, C, H, W]."""
        found = torch.fft.ifftshift(torch.complex(*x.chunk(2, 1)), dim=(-2, -1))
        made: Tensor = torch.fft.ifft2(found, norm="ortho").real
        return made


def transformed(pixels: Preprocess, transform: Transform) -> Preprocess:
    """The same preprocessing, and a transform behind it."""
    return pixels if transform == "none" else Fourier(pixels.mean, pixels.std, pixels.permutation)
