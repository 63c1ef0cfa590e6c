"""What the networks are made of."""

from collections.abc import Callable

from torch import nn

from hnetcl.algebra import Algebra
from hnetcl.layers import Conv2d, Linear

Norm = Callable[[int], nn.Module]


def dense(width_in: int, width_out: int, algebra: Algebra, norm: Norm | None) -> list[nn.Module]:
    """Linear, norm, ReLU. Without a norm the layer has a bias."""
    linear = Linear(width_in, width_out, algebra, bias=norm is None)
    return [linear, *([norm(width_out)] if norm else []), nn.ReLU()]


def conv(width_in: int, width_out: int, kernel_size: int, algebra: Algebra, norm: Norm | None) -> list[nn.Module]:
    """Convolution without padding, norm, ReLU and 2 x 2 max pooling. Without a norm the layer has a bias."""
    conv2d = Conv2d(width_in, width_out, kernel_size, algebra, bias=norm is None)
    return [conv2d, *([norm(width_out)] if norm else []), nn.ReLU(), nn.MaxPool2d(2)]
