"""What the networks are made of."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from hnetcl.algebra import REAL, Algebra, AlgebraName, as_algebra
from hnetcl.bn import NormLayer
from hnetcl.errors import ArgumentError
from hnetcl.layers import Conv2d, Linear

Norm = Callable[[int], nn.Module]
WidthUnit = Literal["channels", "numbers"]


def check_widths(name: str, widths: Sequence[int], algebra: Algebra, norm: Norm | None) -> None:
    """Refuses widths that do not hold whole numbers of an algebra, or that the norm does not take.

    Raises:
        ArgumentError: of that name.
    """
    for width in widths:
        if width % algebra.dim:
            raise ArgumentError(name, list(widths), f"every width must be a multiple of {algebra.dim} ({algebra.name})")
        try:
            if norm is not None:
                norm(width)
        except ArgumentError as error:
            if error.name != "num_features":
                raise
            raise ArgumentError(name, list(widths), f"every width {error.allowed.replace('positive ', '')}") from error


def real_width(width: int, unit: WidthUnit, algebra: Algebra, norm: Norm | None) -> int:
    """Real channels of the width that a user gave, in channels or in numbers of d channels each.

    Raises:
        ArgumentError: of the name width: no whole numbers, or the norm does not take that many.
    """
    channels = width * algebra.dim if unit == "numbers" else width
    try:
        check_widths("width", [channels], algebra, norm)
    except ArgumentError as error:
        raise ArgumentError("width", width, error.allowed) from error
    return channels


def first_algebra(in_algebra: AlgebraName | Algebra, algebra: Algebra, in_shape: Sequence[int]) -> Algebra:
    """The algebra of a network's first layer.

    Args:
        in_algebra: of the input: real, or that of the network, whose components are then channels, all real parts first.
        algebra: of the network.
        in_shape: (C, ...) of the input.

    Raises:
        ArgumentError: another algebra than these, or channels that are no components of such numbers.
    """
    first = as_algebra(in_algebra)
    if first not in (REAL, algebra):
        allowed = ", ".join(dict.fromkeys((REAL.name, algebra.name)))
        raise ArgumentError("in_algebra", first.name, f"must be real, or the network's own; allowed: {allowed}")
    if in_shape[0] % first.dim:
        rule = f"needs {first.dim} channels for a number, and the input has {in_shape[0]} channels; allowed: real"
        raise ArgumentError("in_algebra", first.name, rule)
    return first


def dense(width_in: int, width_out: int, algebra: Algebra, norm: Norm | None) -> list[nn.Module]:
    """Linear, norm, ReLU. Without a norm the layer has a bias."""
    linear = Linear(width_in, width_out, algebra, bias=norm is None)
    return [linear, *([norm(width_out)] if norm else []), nn.ReLU()]


def conv(width_in: int, width_out: int, kernel_size: int, algebra: Algebra, norm: Norm | None) -> list[nn.Module]:
    """Convolution without padding, norm, ReLU and 2 x 2 max pooling. Without a norm the layer has a bias."""
    return [*conv_norm(width_in, width_out, kernel_size, algebra, norm), nn.ReLU(), MaxPool()]


def conv_norm(
    width_in: int, width_out: int, kernel_size: int, algebra: Algebra, norm: Norm | None, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    """Convolution and norm. Without a norm the layer has a bias."""
    conv2d = Conv2d(width_in, width_out, kernel_size, algebra, norm is None, stride, padding)
    return [conv2d] if norm is None else _behind(norm(width_out), conv2d)


def _behind(norm: nn.Module, conv: Conv2d) -> list[nn.Module]:
    """Convolution and norm: one layer after the other, or as the norm says."""
    return norm.behind(conv) if isinstance(norm, NormLayer) else [conv, norm]


class MaxPool(nn.MaxPool2d):
    """The largest of 2 x 2 positions.

    Without gradients, on a CPU, in two elementwise passes: the same values in a tenth of the time, for torch's pooling notes
    the places of the maxima, too.
    """

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not x.is_cpu:
            pooled: Tensor = super().forward(x)
            return pooled
        height, width = (size // 2 * 2 for size in x.shape[-2:])
        x = torch.maximum(x[..., 0:height:2, :], x[..., 1:height:2, :])
        return torch.maximum(x[..., 0:width:2], x[..., 1:width:2])
