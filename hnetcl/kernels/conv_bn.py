"""Convolution and batch norm in one function that saves the convolution's input, not its output.

    z = conv(x)    y = batch norm of z

Backward computes z again from x, takes dz from the batch norm's closed form (see `closed_form`) and hands it to the
convolution's gradients: half of the pair's memory for one more convolution. After in-place activated batch norm (Rota Bulo,
Porzi & Kontschieder 2018, section 3) and PyTorch's tutorial "Fusing Convolution and Batch Norm using Custom Function".

The bias b of the convolution never meets the large tensors: it moves the mean and nothing else.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hnetcl.kernels import steps
from hnetcl.kernels.backends import REFERENCE, Kernel
from hnetcl.kernels.convolution import Convolution
from hnetcl.kernels.layout import owned, split, sum_dtype
from hnetcl.kernels.mapping import is_mapped, one_by_one
from hnetcl.kernels.once import only_once
from hnetcl.kernels.passes import PLAIN, Passes
from hnetcl.kernels.steps import Options
from hnetcl.kernels.sums import Group

TWICE = "fused convolution and batch norm has no second derivative: call the two layers one after the other"


def fused(kernel: Kernel, conv: Convolution, conv_weight: Tensor, conv_bias: Tensor | None) -> Kernel:
    """The kernel that normalizes conv(x) where `kernel` normalizes x. The reference is not fused, but composed."""
    options: dict[str, Any] = {"conv": conv, "conv_weight": conv_weight, "conv_bias": conv_bias}
    if kernel is REFERENCE:
        return Kernel(
            lambda x, *args, **kwargs: kernel.batch_norm(_with_bias(x, **options), *args, **kwargs),
            lambda x, *args, **kwargs: kernel.normalize(_with_bias(x, **options), *args, **kwargs),
            lambda x, *args, **kwargs: kernel.synchronised_batch_norm(_with_bias(x, **options), *args, **kwargs),
        )
    options["passes"] = kernel.passes
    return Kernel(
        partial(conv_batch_norm, **options),
        partial(conv_normalize, **options),
        partial(synchronised_conv_batch_norm, **options),
        kernel.passes,
    )


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
    passes: Passes | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalizes conv(x) by its own statistics.

    Args:
        x: [N, in, *S].
        conv_weight: [out, in / groups, *K].
        conv_bias: [out] or None; its gradient is exactly zero.
        gamma, beta, d, eps, whitening: see `reference.batch_norm`, with C = out.
        passes: see `closed_form.batch_norm`.

    Returns:
        y [N, out, *S'], mean [out], biased covariance [out/d, d, d] without eps; the statistics carry no graph.
    """
    options = Options(d, eps, whitening, passes)
    return _by_batch(x, gamma, beta, conv, conv_weight, conv_bias, options)[:3]


def synchronised_conv_batch_norm(
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
    group: Group,
    passes: Passes | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`conv_batch_norm` by the statistics of all ranks; see `closed_form.synchronised_batch_norm`."""
    return _by_batch(x, gamma, beta, conv, conv_weight, conv_bias, Options(d, eps, whitening, passes, group))


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
    passes: Passes | None = None,
) -> Tensor:
    """Normalizes conv(x) by given statistics [out] and [out/d, d, d], which gradients reach; y [N, out, *S']."""
    x, weight = _autocast(x, conv_weight)
    shape = conv.output_shape(x, weight)
    centre = mean.to(sum_dtype(mean.dtype))
    if conv_bias is not None:
        centre = centre - conv_bias.to(centre.dtype)
    y: Tensor = _GivenStatistics.apply(x, weight, centre, cov, gamma, beta, conv, Options(d, eps, whitening, passes))[0]
    return y.reshape(shape)


def _by_batch(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    conv: Convolution,
    weight: Tensor,
    bias: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, weight = _autocast(x, weight)
    shape = conv.output_shape(x, weight)
    y, mean, cov, count, *_ = _BatchStatistics.apply(x, weight, bias, gamma, beta, conv, options)
    if bias is not None:
        mean = mean + bias.detach().to(mean.dtype)
    return y.reshape(shape), mean, cov, count


def _autocast(*tensors: Tensor) -> list[Tensor]:
    """What autocast would make of a convolution's arguments; done here, for it does not reach a recomputation in backward."""
    device = tensors[0].device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return list(tensors)
    return [t if t.dtype == torch.float64 else t.to(torch.get_autocast_dtype(device)) for t in tensors]


def _with_bias(x: Tensor, conv: Convolution, conv_weight: Tensor, conv_bias: Tensor | None) -> Tensor:
    z = conv(*_autocast(x, conv_weight))
    return z if conv_bias is None else z + conv_bias.to(z.dtype).reshape(-1, *[1] * (z.ndim - 2))


def _for_mapped(options: Options, *tensors: Tensor | None) -> Options:
    """Options that serve where vmap maps over any of the tensors."""
    return replace(options, passes=PLAIN) if is_mapped(*tensors) else options


# As in `closed_form` the functions return numbers [N, d, Q, S], so that y can be changed in place.


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
        options = _for_mapped(options, x, weight, gamma, beta)
        y, mean, cov, count, factors = steps.forward_batch(split(conv(x, weight), options.d), gamma, beta, options)
        return owned(y), mean.reshape(-1), cov, count, *factors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, gamma, _, ctx.conv, ctx.options = inputs
        _, mean, cov, count, *factors = output
        ctx.mark_non_differentiable(mean, cov, count, *factors)
        ctx.save_for_backward(x, weight, bias, gamma, mean, count, *factors)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return one_by_one(partial(_BatchStatistics._backward, ctx), g)

    @staticmethod
    def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, gamma, mean, count, *factors = saved = ctx.saved_tensors
        conv, options = ctx.conv, _for_mapped(ctx.options, g, *saved)
        with torch.no_grad():
            z = conv(x, weight)
            shape, mean = z.shape, mean.reshape(options.d, -1)
            z = split(z, options.d)
            dz, dgamma, dbeta = steps.backward_batch(g, z, gamma, mean, count, factors, options)
            del z
            dx, dweight = conv.gradients(dz.reshape(shape), x, weight, ctx.needs_input_grad[:2])
            dbias = None if bias is None else torch.zeros_like(bias)
        gradients = dx, dweight, dbias, dgamma, dbeta if ctx.needs_input_grad[4] else None
        return *only_once(gradients, (g, *saved), TWICE), None, None


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
        options = _for_mapped(options, x, weight, mean, cov, gamma, beta)
        y, factors = steps.forward_given(split(conv(x, weight), options.d), mean, cov, gamma, beta, options)
        return owned(y), *factors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, mean, cov, gamma, _, ctx.conv, ctx.options = inputs
        _, *factors = output
        ctx.mark_non_differentiable(*factors)
        ctx.save_for_backward(x, weight, mean, cov, gamma, *factors)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return one_by_one(partial(_GivenStatistics._backward, ctx), g)

    @staticmethod
    def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, cov, gamma, *factors = saved = ctx.saved_tensors
        conv, options = ctx.conv, _for_mapped(ctx.options, g, *saved)
        with torch.no_grad():
            z = conv(x, weight)
            shape, z = z.shape, split(z, options.d)
            dz, dmean, dcov, dgamma, dbeta = steps.backward_given(g, z, mean, gamma, factors, options)
            del z
            dx, dweight = conv.gradients(dz.reshape(shape), x, weight, ctx.needs_input_grad[:2])
        gradients = dx, dweight, dmean, dcov.to(cov.dtype), dgamma, dbeta if ctx.needs_input_grad[5] else None
        return *only_once(gradients, (g, *saved), TWICE), None, None
