"""Refusing to be differentiated twice."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def only_once(gradients: Sequence[Tensor | None], sources: Sequence[Tensor | None], message: str) -> tuple[Tensor | None, ...]:
    """The gradients, of which a derivative by one of the sources raises RuntimeError(message).

    torch's `once_differentiable` forgets the saved tensors among the sources, and so drops derivatives silently.
    """
    watched = [s for s in sources if s is not None and s.requires_grad]
    if not torch.is_grad_enabled() or not watched:
        return tuple(gradients)
    found = [g for g in gradients if g is not None]
    guarded = iter(_Refusing.apply(message, len(found), *found, *watched))
    return tuple(None if g is None else next(guarded) for g in gradients)


class _Refusing(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(message: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.message = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(ctx.message)
