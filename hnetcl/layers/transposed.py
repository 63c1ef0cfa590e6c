"""Transposed convolutions for every algebra."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from hnetcl.algebra import REAL, Algebra
from hnetcl.errors import ArgumentError
from hnetcl.layers.base import BaseConv
from hnetcl.layers.sizes import Size, per_axis


class ConvTransposeNd(BaseConv):
    """Transposed convolution: [N, in, *S] -> [N, out, *S'], component-major; `ConvTranspose1d` to `ConvTranspose3d`.

    Every number of the input is multiplied by the weights from the left, as in `ConvNd`, and spread over the output. For
    complex numbers this is torch's transposed convolution of complex tensors (no weight is conjugated).

    Args:
        in_channels, out_channels: real channels, multiples of d.
        kernel_size, algebra, bias, stride, dilation: as in `ConvNd`.
        padding: as in torch: what the output is short of.
        output_padding: added on one side of the output; must be smaller than the stride or the dilation.
        groups: of numbers that see each other; must divide the numbers of the input and of the output.

    `weight` is [d, in / d, out / (d groups), *kernel_size], by component like torch's.

    Raises:
        ArgumentError: a width is not a multiple of d, or an option is outside its set.
    """

    options = ("output_padding",)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        algebra: str | Algebra = REAL,
        bias: bool = True,
        stride: Size = 1,
        padding: Size = 0,
        *,
        output_padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, algebra, bias, stride, dilation, groups, transposed=True)
        self.padding: tuple[int, ...] = per_axis("padding", padding, self.axes, least=0)
        self.output_padding = per_axis("output_padding", output_padding, self.axes, least=0)
        if any(more >= most for more, most in zip(self.output_padding, self._steps(), strict=True)):
            raise ArgumentError("output_padding", output_padding, "must be smaller than the stride or the dilation")

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """[N, in, *S] -> [N, out, *S'].

        Args:
            x: the input.
            output_size: S', or the whole shape, in place of `output_padding`.

        Raises:
            ValueError: there is no output of that size.
        """
        padding = self.output_padding if output_size is None else self._output_padding(x, output_size)
        run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.axes - 1]

        def transposed(x: Tensor, bias: Tensor | None) -> Tensor:
            y: Tensor = run(x, self.real_weight(), bias, self.stride, self.padding, padding, self.groups, self.dilation)
            return y

        return self.in_groups(x, transposed)

    def real_weight(self) -> Tensor:
        """[in, out / groups, *kernel_size]; its groups are those of `Algebra.group_major`.

        The block of a number's conjugate is the transpose of its own, so the rows are those of the input.
        """
        return self.algebra.block_matrix(self.algebra.conjugate(self.weight), self.channels_last, self.groups)

    def _steps(self) -> list[int]:
        """Sizes of the output that one size of the input stands for, or the dilation where that is more."""
        return [max(pair) for pair in zip(self.stride, self.dilation, strict=True)]

    def _output_padding(self, x: Tensor, output_size: Sequence[int]) -> tuple[int, ...]:
        geometry = zip(x.shape[-self.axes :], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        least = [(size - 1) * step - 2 * side + dilation * (k - 1) + 1 for size, k, step, side, dilation in geometry]
        wanted = output_size[-self.axes :] if len(output_size) in (self.axes, x.ndim) else ()
        most = [low + step - 1 for low, step in zip(least, self._steps(), strict=True)]
        if len(wanted) != self.axes or not all(lo <= size <= hi for lo, size, hi in zip(least, wanted, most, strict=True)):
            raise ValueError(f"output_size must be from {least} to {most} for x of shape {tuple(x.shape)}, got {output_size}")
        return tuple(size - low for size, low in zip(wanted, least, strict=True))


class ConvTranspose1d(ConvTransposeNd):
    __doc__ = ConvTransposeNd.__doc__
    axes = 1
    torch_layer = nn.ConvTranspose1d


class ConvTranspose2d(ConvTransposeNd):
    __doc__ = ConvTransposeNd.__doc__
    axes = 2
    torch_layer = nn.ConvTranspose2d


class ConvTranspose3d(ConvTransposeNd):
    __doc__ = ConvTransposeNd.__doc__
    axes = 3
    torch_layer = nn.ConvTranspose3d
