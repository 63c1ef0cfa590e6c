"""A convolution and the batch norm behind it as one layer that saves half of their memory."""

from typing import Any, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from hnetcl.bn.layer import BatchNormLayer
from hnetcl.errors import ArgumentError
from hnetcl.kernels.backends import fused
from hnetcl.kernels.conv_bn import Convolution
from hnetcl.layers import ConvNd
from hnetcl.layers.sizes import sides
from hnetcl.registry import register

TORCHS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
AnyConv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | ConvNd


class ConvBatchNorm(nn.Module):
    """norm(conv(x)), with the same output, gradients and statistics.

    Saves x and the weights for backward, but not conv(x), which backward computes again: about half of the memory for a third
    more of the convolution's time. Has no second derivative. Forward hooks on the two layers don't run.

        layer = ConvBatchNorm(Conv2d(16, 32, 3, "complex", bias=False), BatchNormLayer(32, algebra="complex"))

    Args:
        conv: of this package or of torch, with any options; with groups only of real channels.
        norm: as wide as the convolution's output.

    Their parameters and buffers are those of the submodules `conv` and `norm`.

    Raises:
        ArgumentError: the convolution computes something of its own, has hooks or groups of numbers, or the widths differ.
    """

    def __init__(self, conv: AnyConv, norm: BatchNormLayer) -> None:
        super().__init__()
        forwards = [kind.forward for kind in (*TORCHS, ConvNd)]
        if type(conv).forward not in forwards:
            names = "a convolution of torch or hnetcl.layers with its own forward"
            raise ArgumentError("conv", type(conv).__name__, f"must be {names}")
        if conv._forward_pre_hooks or conv._forward_hooks:
            raise ArgumentError("conv", type(conv).__name__, "must have no hooks, for they would not run")
        if isinstance(conv, ConvNd) and conv.reorders:
            rule = "must be 1 for numbers, whose groups lie apart: use the two layers one after the other"
            raise ArgumentError("conv.groups", conv.groups, rule)
        width = conv.out_channels
        if norm.num_features != width:
            raise ArgumentError("norm.num_features", norm.num_features, f"must be {width}, the convolution's output channels")
        self.conv, self.norm = conv, norm

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        """[N, in, *S] -> [N, out, *S'].

        Args:
            x: the convolution's input, with its batch axis.
            given: further arguments of the batch norm (see `BatchNormLayer.forward`).

        Raises:
            ValueError: the shape of x, or what `BatchNormLayer.forward` raises.
        """
        weight = _real_weight(self.conv)
        x, convolution = _padded(self.conv, x, weight)
        shape = convolution.output_shape(x, weight)
        kernel = fused(self.norm.kernel(x), convolution, weight, self.conv.bias)
        return self.norm.normalize_by(kernel, x, shape, **given)


@register("bn", "fused")
class FusedBatchNormLayer(BatchNormLayer):
    """A `BatchNormLayer` that networks join with the convolution before it, as `ConvBatchNorm`, where there is one.

    The arguments are those of `BatchNormLayer`. With backend="reference" the two are computed one after the other.
    """

    def behind(self, conv: AnyConv) -> list[nn.Module]:  # type: ignore[override]  # which `ConvBatchNorm` refuses by itself
        return [ConvBatchNorm(conv, self)]


def _real_weight(conv: AnyConv) -> Tensor:
    """[out, in / groups, *K]."""
    return conv.real_weight() if isinstance(conv, ConvNd) else conv.weight


def _padded(conv: AnyConv, x: Tensor, weight: Tensor) -> tuple[Tensor, Convolution]:
    """x with all the padding that a convolution can't do itself, and the convolution of that."""
    added = sides(conv.padding, weight.shape[2:], conv.dilation)
    if conv.padding_mode != "zeros" or any(left != right for left, right in added):
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, [side for pair in reversed(added) for side in pair], mode)
        added = [(0, 0)] * len(added)
    return x, Convolution(conv.stride, tuple(left for left, _ in added), conv.dilation, conv.groups)
