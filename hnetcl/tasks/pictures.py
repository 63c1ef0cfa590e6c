"""One image of any kind -> uint8 [C, H, W]; nothing is lost on the way, or it is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from hnetcl.errors import ArgumentError, one_line

GREY, COLOUR = ("1", "L"), ("RGB", "P", "CMYK", "YCbCr", "HSV")
WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")


def pixels_of(image: Any) -> Tensor:
    """The pixels of a PIL image; a tensor [C, H, W] or [H, W]; or an array [H, W, C] or [H, W].

    Tensors of floats are taken back to uint8, if each is k / 255: what torchvision's `ToTensor` makes.

    Raises:
        ValueError: it is none of these, or has other values; in words that go behind the image's name.
    """
    if isinstance(image, Image.Image):
        return _of_pil(image)
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image))
        image = image.permute(2, 0, 1) if image.ndim == 3 else image
    if not isinstance(image, Tensor):
        raise ValueError(f"is a {type(image).__name__}, expected a PIL image, a tensor or an array")
    if image.layout != torch.strided:
        raise ValueError(f"is {image.layout}, expected a dense tensor")
    pixels: Tensor = image[None] if image.ndim == 2 else image
    if pixels.ndim != 3:
        raise ValueError(f"is of shape {tuple(pixels.shape)}, expected [C, H, W] or [H, W]")
    if pixels.dtype.is_floating_point:
        levels = (pixels * 255).round().clamp(0, 255)
        if not torch.equal(levels / 255, pixels):
            raise ValueError("has values that are not k / 255; allowed: images before they are normalized")
        return levels.to(torch.uint8)
    if pixels.is_complex():
        rule = "numbers that are no pixels are a `Task`'s own float32 channels, all real parts first, under `AsTheyAre`"
        raise ValueError(f"is of {pixels.dtype}, expected uint8; {rule}")
    if pixels.dtype != torch.uint8:
        raise ValueError(f"is of {pixels.dtype}, expected uint8")
    return pixels


def read_picture(path: Path, size: int | None = None) -> Tensor:
    """The pixels of a file.

    Args:
        size: height and width that it is brought to, bilinearly; None: its own.

    Raises:
        ArgumentError: the file is no image that can be read, or one that would lose something.
    """
    try:
        with Image.open(path) as image:
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise ValueError(f"has {frames} frames; allowed: one")
            image.load()
            return _of_pil(image if size is None else _plain(image).resize((size, size), Image.Resampling.BILINEAR))
    except UnidentifiedImageError as error:
        raise ArgumentError("root", path, "is not an image that Pillow can read") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's for damaged files
        raise ArgumentError("root", path, f"can't be read ({one_line(error)})") from error
    except ValueError as error:
        raise ArgumentError("root", path, one_line(error)) from error


def alike(images: Sequence[Tensor]) -> list[Tensor]:
    """The same images, grey ones with their channel three times where others have colours."""
    most = max((image.shape[-3] for image in images), default=1)
    return [grey_repeated(image, most) for image in images]


def grey_repeated(images: Tensor, channels: int) -> Tensor:
    """Images [..., C, H, W] with that many channels, where C is 1; else as they are."""
    return images.repeat_interleave(channels, -3) if images.shape[-3] == 1 else images


def brought_to(images: Tensor, height: int, width: int, how: str) -> Tensor:
    """Images uint8 [N, C, H, W] in another size.

    Args:
        how: "pad": with zeros, as many on each side, one more below and on the right where they are odd. "resize": bilinearly,
            with antialiasing.

    Raises:
        ValueError: they are larger and would have to be padded.
    """
    down, right = height - images.shape[2], width - images.shape[3]
    if not down and not right:
        return images
    if how == "pad":
        if down < 0 or right < 0:
            raise ValueError(f"has images of {tuple(images.shape[2:])}, which can't be padded to {(height, width)}")
        return F.pad(images, [right // 2, right - right // 2, down // 2, down - down // 2])
    small = images.split(1000)  # in float32 they take four times the memory
    made = [F.interpolate(each.float(), (height, width), mode="bilinear", antialias=True) for each in small]
    return torch.cat([each.round().clamp(0, 255).to(torch.uint8) for each in made])


def _plain(image: Image.Image) -> Image.Image:
    """The same image in grey or RGB, without anything else."""
    mode = image.mode
    if mode in WITH_ALPHA or "transparency" in image.info:
        whole = image.convert("RGBA")
        lowest, _ = whole.getchannel("A").getextrema()
        if lowest != 255:
            raise ValueError("is partly transparent, and nothing says on what it lies")
        return whole.convert("L" if mode in ("LA", "La", "L", "1") else "RGB")
    if mode in GREY:
        return image.convert("L")
    if mode in COLOUR:
        return image.convert("RGB")
    raise ValueError(f"is of Pillow's mode {mode}, which 8 bits for each channel can't hold")


def _of_pil(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(_plain(image)))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
