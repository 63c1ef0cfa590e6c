"""Changes of training images that keep their class, drawn for each image of a batch by itself."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Augmentation = Literal["none", "crop_flip"]
PADDING = 4


def augmented(images: Tensor, kind: Augmentation, generator: torch.Generator) -> Tensor:
    """A batch of training images, uint8 [N, C, H, W], as an epoch sees them.

    Args:
        kind: "none": as they are. "crop_flip": each image is padded with `PADDING` zeros, cropped to its size at a random
            place, and mirrored with probability 1/2. All is drawn for each image, on its device, in one gather.
        generator: on the images' device.

    Source: He et al. 2016 (arXiv:1512.03385), section 4.2.
    """
    if kind == "none":
        return images
    number, channels, height, width = images.shape
    device = images.device
    top, left = torch.randint(2 * PADDING + 1, (2, number, 1), generator=generator, device=device)
    mirrored = torch.randint(2, (number, 1), generator=generator, device=device).bool()
    rows = top + torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    columns = left + torch.where(mirrored, columns.flip(0), columns)
    padded = F.pad(images, [PADDING] * 4)
    places = (rows[:, :, None] * padded.shape[3] + columns[:, None]).flatten(1)[:, None].expand(-1, channels, -1)
    return padded.flatten(2).gather(2, places).reshape(images.shape)  # indexing by four tensors takes eight times as long
