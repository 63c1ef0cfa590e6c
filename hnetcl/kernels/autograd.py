"""What a function that brings its own derivative owes to autograd and to torch.func.

Such a function must give several gradients at once where that is asked for, refuse a second derivative that it has not, return
what may be changed in place, and know where vmap maps over its tensors.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

OLD_VMAP, OLD_VMAP_MODE = map(torch._C._dispatch_key_parse, ("Batched", "VmapMode"))

Gradients = tuple[Tensor | None, ...]


def is_mapped(*tensors: Tensor | None) -> bool:
    """Whether any tensor stands for the slices of one that torch.func.vmap maps over; such tensors can't be written into."""
    if torch.compiler.is_compiling():
        return False
    return any(map(_is_mapped, tensors))


def _is_mapped(t: Tensor | None) -> bool:
    if t is None:
        return False
    while torch._C._functorch.is_gradtrackingtensor(t):  # torch.func.grad wraps what vmap has wrapped
        t = torch._C._functorch.get_unwrapped(t)
    return torch._C._functorch.is_batchedtensor(t)


def learns(t: Tensor) -> bool:
    """Whether a gradient is wanted of t, by autograd or by any transform of torch.func, which hide what is around them."""
    wanted: bool = t.requires_grad
    if wanted or torch.compiler.is_compiling() or not torch._C._functorch.is_functorch_wrapped_tensor(t):
        return wanted
    return learns(torch._C._functorch.get_unwrapped(t))


def owned(y: Tensor) -> Tensor:
    """y as an autograd function may return it: a view could not be changed in place after that, as ReLU(inplace=True) does."""
    return y if torch.compiler.is_compiling() or not y._is_view() else y.data


def only_once(message: str) -> Callable[[Callable[..., Gradients]], Callable[..., Gradients]]:
    """Makes (ctx, g, *saved tensors) -> gradients the `backward` of an autograd function, for the first of its outputs.

    It runs without a graph; a second derivative raises RuntimeError(message).
    """

    def decorate(derivative: Callable[..., Gradients]) -> Callable[..., Gradients]:
        def run(ctx: Any, g: Tensor) -> Gradients:
            saved = ctx.saved_tensors
            with torch.no_grad():
                gradients = derivative(ctx, g, *saved)
            return _refuse_another(gradients, (g, *saved), message)

        def backward(ctx: Any, g: Tensor, *_: Any) -> Gradients:
            return _one_by_one(partial(run, ctx), g)

        return backward

    return decorate


def _one_by_one(backward: Callable[[Tensor], Gradients], g: Tensor) -> Gradients:
    """backward(g); of several gradients at once (`torch.autograd.grad(is_grads_batched=True)`), what a loop over them gives.

    torch maps over those by its older vmap, which knows too few operations for batch norm.
    """
    if torch.compiler.is_compiling() or not torch._C._dispatch_keys(g).has(OLD_VMAP):
        return backward(g)
    level, gradients = 1, torch._remove_batch_dim(g, 1, 1, 0)
    while torch._C._dispatch_keys(gradients).has(OLD_VMAP):  # g is not of this level, but of one further in
        level += 1
        gradients = torch._remove_batch_dim(g, level, 1, 0)
    torch._C._dispatch_tls_set_dispatch_key_included(OLD_VMAP_MODE, False)  # in which nothing can be compiled
    try:
        found = zip(*[backward(gradient) for gradient in gradients], strict=True)
    finally:
        torch._C._dispatch_tls_set_dispatch_key_included(OLD_VMAP_MODE, True)
    stacks = [None if each[0] is None else torch.stack(each) for each in found]
    return tuple(None if s is None else torch._add_batch_dim(s, 0, level) for s in stacks)


def _refuse_another(gradients: Gradients, sources: Sequence[Tensor | None], message: str) -> Gradients:
    """The gradients, of which a derivative by one of the sources raises.

    torch's `once_differentiable` forgets the saved tensors among the sources, and so drops derivatives silently.
    """
    watched = [s for s in sources if s is not None and s.requires_grad]
    if not torch.is_grad_enabled() or not watched:
        return gradients
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
