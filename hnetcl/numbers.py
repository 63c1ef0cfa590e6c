"""Parameters of any dtype as real numbers, which is what hypernetworks write, and back."""

import torch
from torch import Tensor


def real_view(parameter: Tensor) -> Tensor:
    """A parameter [*S] as real numbers: itself, or [*S, 2] of a complex one."""
    return torch.view_as_real(parameter) if parameter.is_complex() else parameter


def flat_numbers(value: Tensor) -> Tensor:
    """The real numbers [n] of a value, without its graph: in float32, in float64 where that is the value's dtype."""
    numbers = real_view(value.detach()).flatten()
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def as_parameter(numbers: Tensor, like: Tensor) -> Tensor:
    """Real numbers [..., *S], or [..., *S, 2], as a tensor [..., *S] of a parameter's dtype; gradients pass."""
    if like.is_complex():
        return torch.complex(*numbers.to(like.real.dtype).unbind(-1))  # view_as_complex is picky about strides
    return numbers.to(like.dtype)
