"""Convolutions for every algebra."""

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from hnetcl.algebra import REAL, Algebra
from hnetcl.errors import ArgumentError, one_of
from hnetcl.layers.base import BaseConv
from hnetcl.layers.sizes import Size, per_axis, sides

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class ConvNd(BaseConv):
    """Convolution over numbers of d components: [N, in, *S] -> [N, out, *S'], component-major; `Conv1d` to `Conv3d`.

    Args:
        in_channels, out_channels: real channels, multiples of d.
        kernel_size: of every axis, or of each.
        algebra: of the product, weight times input.
        bias: whether a bias [out] exists; it starts at zero.
        stride, padding, dilation, padding_mode: as in torch: an int, or one for each axis; "same", "valid".
        groups: of numbers that see each other; must divide the numbers of the input and of the output.

    `weight` is [d, out / d, in / (d groups), *kernel_size]. `.to(memory_format=torch.channels_last)` (with three axes
    `channels_last_3d`) is remembered, and the real weight laid out so: outputs then have that format, as those of torch's.

    Raises:
        ArgumentError: a width is not a multiple of d, or an option is outside its set.
    """

    options = ("padding_mode",)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        algebra: str | Algebra = REAL,
        bias: bool = True,
        stride: Size = 1,
        padding: Size | Literal["same", "valid"] = 0,
        *,
        dilation: Size = 1,
        groups: int = 1,
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, algebra, bias, stride, dilation, groups, transposed=False)
        if padding_mode not in get_args(PaddingMode):
            raise one_of("padding_mode", padding_mode, get_args(PaddingMode))
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise one_of("padding", padding, ("same", "valid"))
            if padding == "same" and max(self.stride) > 1:
                raise ArgumentError("padding", padding, f"needs stride=1, not {self.stride}")
            self.padding = padding
        else:
            self.padding = per_axis("padding", padding, self.axes, least=0)
        self.padding_mode = padding_mode

    def forward(self, x: Tensor) -> Tensor:
        return self.in_groups(x, self._run)

    def real_weight(self) -> Tensor:
        """[out, in / groups, *kernel_size]; its groups are those of `Algebra.group_major`."""
        return self.algebra.block_matrix(self.weight, self.channels_last, self.groups)

    def _run(self, x: Tensor, bias: Tensor | None) -> Tensor:
        padding: str | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            added = sides(self.padding, self.kernel_size, self.dilation)
            x = F.pad(x, [side for pair in reversed(added) for side in pair], self.padding_mode)
            padding = (0,) * self.axes
        run = (F.conv1d, F.conv2d, F.conv3d)[self.axes - 1]
        y: Tensor = run(x, self.real_weight(), bias, self.stride, padding, self.dilation, self.groups)
        return y


class Conv1d(ConvNd):
    __doc__ = ConvNd.__doc__
    axes = 1
    torch_layer = nn.Conv1d


class Conv2d(ConvNd):
    __doc__ = ConvNd.__doc__
    axes = 2
    torch_layer = nn.Conv2d


class Conv3d(ConvNd):
    __doc__ = ConvNd.__doc__
    axes = 3
    torch_layer = nn.Conv3d
