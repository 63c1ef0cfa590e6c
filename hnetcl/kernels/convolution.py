"""Convolutions without bias over any number of axes, and their gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Convolution:
    """[N, in, *S] -> [N, out, *S'] by a weight [out, in / groups, *K].

    Args:
        stride, padding, dilation: an integer for each axis of S; the padding is with zeros.
        groups: blocks of channels that see each other.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        shift = (0,) * len(self.stride)
        return torch.convolution(x, weight, None, self.stride, self.padding, self.dilation, False, shift, self.groups)

    def output_shape(self, x: Tensor, weight: Tensor) -> torch.Size:
        """The shape of what comes out.

        Raises:
            ValueError: x has not the axes that the weight has, or is smaller than the kernel.
        """
        if x.ndim != weight.ndim:
            raise ValueError(f"expected x of shape [N, in, ...] with {weight.ndim} axes, got {tuple(x.shape)}")
        axes = zip(x.shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        space = [(size + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for size, k, stride, padding, dilation in axes]
        if min(space) < 1:
            raise ValueError(f"a kernel {tuple(weight.shape[2:])} does not fit into x of shape {tuple(x.shape)}")
        return torch.Size([x.shape[0], weight.shape[0], *space])

    def gradients(self, g: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, bool]) -> list[Tensor | None]:
        """dx and dweight from the output's gradient, None where it isn't needed."""
        shift = [0] * len(self.stride)
        geometry = self.stride, self.padding, self.dilation, False, shift, self.groups
        dx, dweight, _ = torch.ops.aten.convolution_backward(g, x, weight, None, *geometry, [*needed, False])
        return [dx if needed[0] else None, dweight if needed[1] else None]
