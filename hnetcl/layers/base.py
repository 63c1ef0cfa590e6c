"""What convolutions and transposed convolutions of numbers have in common."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from hnetcl.algebra import Algebra, as_algebra
from hnetcl.errors import ArgumentError
from hnetcl.layers.sizes import Padding, Size, per_axis
from hnetcl.layers.weights import kaiming_normal

TorchConv = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}  # by the number of axes


class BaseConv(nn.Module):
    """A weight [d, rows, columns, *K] of numbers, whose real weight is one block matrix.

    Numbers lie component-major, so the numbers of a group do not lie in one piece, as torch wants them: with `groups` > 1 and
    d > 1 the channels are reordered on the way in and on the way out. The result is exactly that of a convolution per group.
    """

    axes: ClassVar[int]  # of S
    torch_layer: ClassVar[type[Any]]  # that computes the same
    options: ClassVar[tuple[str, ...]]  # that not all kinds have
    padding: Padding

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        algebra: str | Algebra,
        bias: bool,
        stride: Size,
        dilation: Size,
        groups: int,
        transposed: bool,
    ) -> None:
        super().__init__()
        self.algebra = as_algebra(algebra)
        numbers_in = self.algebra.numbers(in_channels, "in_channels")
        numbers_out = self.algebra.numbers(out_channels, "out_channels")
        if not isinstance(groups, int) or groups < 1 or numbers_in % groups or numbers_out % groups:
            rule = f"must divide the {numbers_in} numbers of the input and the {numbers_out} of the output"
            raise ArgumentError("groups", groups, rule)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = per_axis("kernel_size", kernel_size, self.axes)
        self.stride = per_axis("stride", stride, self.axes)
        self.dilation = per_axis("dilation", dilation, self.axes)
        sides = (numbers_in, numbers_out // groups) if transposed else (numbers_out, numbers_in // groups)
        self.weight = nn.Parameter(kaiming_normal((self.algebra.dim, *sides, *self.kernel_size), self.fans()[0]))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.channels_last = False

    def fans(self) -> tuple[int, int]:
        """Real inputs that a real output sums, and real outputs that a real input goes to, with stride 1."""
        places = math.prod(self.kernel_size)
        return self.in_channels // self.groups * places, self.out_channels // self.groups * places

    def real_weight(self) -> Tensor:
        """torch's weight of the same layer, with `groups` for channels in the order of `Algebra.group_major`."""
        raise NotImplementedError

    @property
    def reorders(self) -> bool:
        """Whether channels are put into another order for the groups."""
        return self.groups > 1 and self.algebra.dim > 1

    def in_groups(self, x: Tensor, run: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        """`run` of x and the bias, which have the order of channels that the real weight is for.

        Args:
            x: [N, in, *S] or [in, *S].
            run: the convolution by the real weight.
        """
        if not self.reorders:
            return run(x, self.bias)
        if x.ndim == self.axes + 1:
            return self.in_groups(x.unsqueeze(0), run).squeeze(0)
        bias = None if self.bias is None else self.algebra.group_major(self.bias.unsqueeze(0), self.groups).squeeze(0)
        return self.algebra.group_major(run(self.algebra.group_major(x, self.groups), bias), self.groups, back=True)

    def as_real(self) -> TorchConv:
        """torch's layer that computes the same; its weight is a copy.

        With groups of numbers (d > 1) it is a layer without groups, most of whose weight is zero.
        """
        real: TorchConv = self.torch_layer(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=1 if self.reorders else self.groups,
            device="meta",
            **self._options(),
        )
        real.weight, real.bias = nn.Parameter(self.ungrouped(), self.weight.requires_grad), self.bias
        return real

    def ungrouped(self) -> Tensor:
        """A copy of the real weight for one group of channels in their own order: between groups of numbers it is zero."""
        matrix = self.real_weight().detach()
        if not self.reorders:
            return matrix.clone(memory_format=torch.contiguous_format)
        d, groups = self.algebra.dim, self.groups
        blocks = matrix.unflatten(0, (groups, d, -1)).unflatten(3, (d, -1))  # [group, c, row, b, column, *K]
        full = blocks.new_zeros(d, groups, blocks.shape[2], d, groups, *blocks.shape[4:])
        for group, block in enumerate(blocks):
            full[:, group, :, :, group] = block
        dense: Tensor = full.flatten(3, 5).flatten(0, 2)
        return dense

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `.to()` and its like do to every tensor; to them `weight` is no image, but the real weight is one."""
        if self.axes in FORMATS:
            last = FORMATS[self.axes]
            image = torch.empty([2] * (self.axes + 2), device=self.weight.device)
            image = image.contiguous(memory_format=last if self.channels_last else torch.contiguous_format)
            with suppress(RuntimeError):  # of a format for images of another number of axes
                self.channels_last = fn(image).is_contiguous(memory_format=last)

        def apply(t: Tensor) -> Tensor:
            flat = t.flatten(1) if t.ndim > 3 else t
            new = fn(flat)
            return t if new is flat else new.reshape(t.shape)

        super()._apply(apply, recurse)
        return self

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, algebra={self.algebra.name}, "
            f"bias={self.bias is not None}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}" + "".join(f", {name}={value}" for name, value in self._options().items())
        )

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.options}
