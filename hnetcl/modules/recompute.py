"""Recomputation in backward (`torch.utils.checkpoint`) by modules that compute with tensors in place of their own.

What such a module drops is computed again in backward, when the tensors have gone from their places. Here they are put back
for that time. torch offers no hook for it, so two functions of `torch.utils.checkpoint` are replaced, once, at first use;
outside of `recomputed_within` they do what they did before.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any

import torch
from torch.utils import checkpoint

Place = Callable[[], AbstractContextManager[Any]]
"""Makes a context in which modules compute with the tensors of an earlier time."""

_capture: ContextVar[Callable[[], Place] | None] = ContextVar("capture", default=None)


@contextmanager
def recomputed_within(capture: Callable[[], Place]) -> Iterator[None]:
    """What is computed within and dropped is computed again in a context that is right for it.

    Reentrant recomputation (`use_reentrant=True`) looks for gradients of the function's arguments only, so it would find none
    for tensors that were put in place: within, it is non-reentrant, which gives the same gradients and all others.

    Args:
        capture: called where something starts that will be computed again; makes what makes that context.
    """
    if torch.compiler.is_compiling():  # the compiler records what is computed, and with what
        yield
        return
    _install()
    token = _capture.set(capture)
    try:
        yield
    finally:
        _capture.reset(token)


@cache
def _install() -> None:
    module: Any = checkpoint
    generator, reentrant = module._checkpoint_without_reentrant_generator, module.CheckpointFunction

    @wraps(generator)
    def placing(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        capture = _capture.get()
        if capture is None:
            return generator(function, *args, **kwargs)
        place = capture()

        @wraps(function)
        def again(*args: Any, **kwargs: Any) -> Any:  # only what is computed again goes through the generator's function
            with place():
                return function(*args, **kwargs)

        return generator(again, *args, **kwargs)

    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        if _capture.get() is None:
            return reentrant.apply(function, preserve, *args)
        return module.checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve)

    module._checkpoint_without_reentrant_generator = placing
    module.CheckpointFunction = type(reentrant.__name__, (reentrant,), {"apply": staticmethod(apply)})
