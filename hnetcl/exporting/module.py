"""What is exported: from images as a data set has them to a task's logits."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnetcl.modules import main_logits

Preprocess = Callable[[Tensor], Tensor]


class Inputs(nn.Module):
    """Images -> the network's input: zeros around them, then what a task makes of its images.

    Args:
        preprocess: a function of a batch. Of a dataclass, as `tasks.sequence.Preprocess` is, tensors become buffers.
        padding: zeros on each side, of images whose sequence was built with them.
    """

    def __init__(self, preprocess: Preprocess | None, padding: int = 0) -> None:
        super().__init__()
        self.preprocess, self.padding = preprocess, padding
        self.held: tuple[str, ...] = ()
        own: Any = preprocess
        if is_dataclass(own):
            self.held = tuple(each.name for each in fields(own) if isinstance(getattr(own, each.name), Tensor))
        for name in self.held:
            self.register_buffer(name, getattr(preprocess, name).detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        if self.padding:
            images = F.pad(images, [self.padding] * 4)
        if self.preprocess is None:
            return images
        own: Any = self.preprocess
        x: Tensor = (replace(own, **{name: self.get_buffer(name) for name in self.held}) if self.held else own)(images)
        return x


class TaskModule(nn.Module):
    """A task's network with what comes before and after it: images [N, C, H, W] -> logits [N, K], never in half precision.

    Args:
        net: maps inputs to logits, or to several outputs of which they are the main one.
        inputs: makes inputs of images.
        outputs: from which logit to before which one; None for all.
    """

    def __init__(self, net: nn.Module, inputs: Inputs, outputs: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.inputs, self.net, self.outputs = inputs, net, outputs
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        logits = main_logits(self.net(self.inputs(images)))
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        return logits if self.outputs is None else logits[:, self.outputs[0] : self.outputs[1]]
