"""Convolution and batch norm in one function that saves the convolution's input, not its output.

    z = conv(x)    y = batch norm of z

Backward computes z again from x, takes dz from the batch norm's closed form (see `batch_norm`) and hands it to the
convolution's gradients: half of the pair's memory for one more convolution. After in-place activated batch norm (Rota Bulo,
Porzi & Kontschieder 2018, section 3) and PyTorch's tutorial "Fusing Convolution and Batch Norm using Custom Function".

The bias b of the convolution never meets the large tensors: it moves the mean and nothing else.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hnetcl.kernels.all_reduce import Group
from hnetcl.kernels.autograd import only_once, owned
from hnetcl.kernels.batch_norm import Options, backward_batch, backward_given, forward_batch, forward_given
from hnetcl.kernels.layout import sum_dtype, to_numbers
from hnetcl.kernels.passes import BLOCKS, Passes
from hnetcl.kernels.reference import Normalized
from hnetcl.kernels.whitening import Factors

TWICE = "fused convolution and batch norm has no second derivative: call the two layers one after the other"


@dataclass(frozen=True)
class Convolution:
    """[N, in, *S] -> [N, out, *S'] by a weight [out, in / groups, *K], without bias, over any number of axes.

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


def conv_batch_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    conv: Convolution,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    d: int,
    eps: float,
    whitening: str,
    group: Group | None = None,
    passes: Passes = BLOCKS,
) -> Normalized:
    """Normalizes conv(x) by its own statistics.

    Args:
        x: [N, in, *S].
        conv_weight: [out, in / groups, *K].
        conv_bias: [out] or None; its gradient is exactly zero.
        gamma, beta, d, eps, whitening, group, passes: see `batch_norm.batch_norm`, with C = out.

    Returns:
        y [N, out, *S'], mean [out], biased covariance [out/d, d, d] without eps; the statistics carry no graph.

    Raises:
        ValueError: x does not fit the convolution.
        RuntimeError: a second derivative is taken.
    """
    x, weight = autocast(x, conv_weight)
    shape = conv.output_shape(x, weight)
    options = Options(d, eps, whitening, passes, group)
    y, mean, cov, count, *_ = _BatchStatistics.apply(x, weight, conv_bias, gamma, beta, conv, options)
    if conv_bias is not None:
        mean = mean + conv_bias.detach().to(mean.dtype)
    return Normalized(y.reshape(shape), mean, cov, shape.numel() // shape[1] if group is None else count)


def conv_normalize(
    x: Tensor,
    mean: Tensor,
    cov: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    conv: Convolution,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    d: int,
    eps: float,
    whitening: str,
    passes: Passes = BLOCKS,
) -> Tensor:
    """Normalizes conv(x) by given statistics [out] and [out/d, d, d], which gradients reach; y [N, out, *S'].

    The rest as in `conv_batch_norm`.
    """
    x, weight = autocast(x, conv_weight)
    shape = conv.output_shape(x, weight)
    centre = mean.to(sum_dtype(mean.dtype))
    if conv_bias is not None:
        centre = centre - conv_bias.to(centre.dtype)
    y: Tensor = _GivenStatistics.apply(x, weight, centre, cov, gamma, beta, conv, Options(d, eps, whitening, passes))[0]
    return y.reshape(shape)


def autocast(*tensors: Tensor) -> list[Tensor]:
    """What autocast would make of a convolution's arguments; done here, for it does not reach a recomputation in backward."""
    device = tensors[0].device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return list(tensors)
    return [t if t.dtype == torch.float64 else t.to(torch.get_autocast_dtype(device)) for t in tensors]


# As in `batch_norm` the functions return numbers [N, d, Q, S], so that y can be changed in place.


class _BatchStatistics(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        conv: Convolution,
        options: Options,
    ) -> tuple[Tensor, ...]:
        y, mean, cov, count, factors = forward_batch(to_numbers(conv(x, weight), options.d), gamma, beta, options)
        return owned(y), mean.reshape(-1), cov, count, *factors.tensors()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, gamma, _, ctx.conv, ctx.options = inputs
        _, mean, cov, count, *factors = output
        ctx.mark_non_differentiable(mean, cov, count, *factors)
        ctx.save_for_backward(x, weight, bias, gamma, mean, count, *factors)

    @staticmethod
    @only_once(TWICE)
    def backward(
        ctx: Any,
        g: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        mean: Tensor,
        count: Tensor,
        *factors: Tensor,
    ) -> tuple[Tensor | None, ...]:
        conv, options = ctx.conv, ctx.options
        needs_x, needs_weight, _, _, needs_beta, _, _ = ctx.needs_input_grad
        z = conv(x, weight)
        shape, z = z.shape, to_numbers(z, options.d)
        dz, dgamma, dbeta = backward_batch(g, z, gamma, mean.reshape(options.d, -1), count, Factors(*factors), options)
        del z  # its memory is free again before the convolution's gradients are there
        dx, dweight = conv.gradients(dz.reshape(shape), x, weight, (needs_x, needs_weight))
        dbias = None if bias is None else torch.zeros_like(bias)
        return dx, dweight, dbias, dgamma, dbeta if needs_beta else None, None, None


class _GivenStatistics(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        mean: Tensor,
        cov: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        conv: Convolution,
        options: Options,
    ) -> tuple[Tensor, ...]:
        y, factors = forward_given(to_numbers(conv(x, weight), options.d), mean, cov, gamma, beta, options)
        return owned(y), *factors.tensors()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, mean, cov, gamma, _, ctx.conv, ctx.options = inputs
        _, *factors = output
        ctx.mark_non_differentiable(*factors)
        ctx.save_for_backward(x, weight, mean, cov, gamma, *factors)

    @staticmethod
    @only_once(TWICE)
    def backward(
        ctx: Any,
        g: Tensor,
        x: Tensor,
        weight: Tensor,
        mean: Tensor,
        cov: Tensor,
        gamma: Tensor | None,
        *factors: Tensor,
    ) -> tuple[Tensor | None, ...]:
        conv, options = ctx.conv, ctx.options
        needs_x, needs_weight, _, _, _, needs_beta, _, _ = ctx.needs_input_grad
        z = conv(x, weight)
        shape, z = z.shape, to_numbers(z, options.d)
        dz, dmean, dcov, dgamma, dbeta = backward_given(g, z, mean, gamma, Factors(*factors), options)
        del z  # its memory is free again before the convolution's gradients are there
        dx, dweight = conv.gradients(dz.reshape(shape), x, weight, (needs_x, needs_weight))
        return dx, dweight, dmean, dcov.to(cov.dtype), dgamma, dbeta if needs_beta else None, None, None
