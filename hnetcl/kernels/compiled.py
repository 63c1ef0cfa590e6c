"""The passes through torch.compile: each becomes one loop over memory on a CPU, one kernel on a GPU.

The first call for a kind of tensor takes seconds, for it compiles; shapes are symbolic, so that others reuse what it made. The
only file that calls torch.compile.
"""

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from hnetcl.kernels.passes import PLAIN, Passes, backward, forward

Backend = str | Callable[..., Any]


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works for this device: found out by compiling something small."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        torch.compile(_add, dynamic=True, fullgraph=True)(torch.zeros(64, device=device))
    except (TorchDynamoException, RuntimeError):
        return False
    return True


def _add(x: Tensor) -> Tensor:
    return x + 1


def compile_whole(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A function as one graph, with the options of torch.compile.

    torch counts the variants of one code object and gives up after eight; so this compiles a copy, with a count of its own.
    """
    assert isinstance(function, FunctionType)
    f = function
    copy = FunctionType(f.__code__.replace(), f.__globals__, f.__name__, f.__defaults__, f.__closure__)
    return torch.compile(copy, fullgraph=True, **options)


def makes_cuda_graphs(backend: Backend, device: torch.device) -> bool:
    """Whether what `compile_step` returns runs as CUDA graphs."""
    return backend == "inductor" and device.type == "cuda"


def compile_step(function: Callable[..., Any], backend: Backend, device: torch.device) -> Callable[..., Any]:
    """A function with its backward as one graph each, made for thousands of calls.

    On a GPU they run as CUDA graphs, on a CPU they are called from C++.
    """
    if backend != "inductor":
        return _once_under_checkpoint(compile_whole(function, backend=backend))
    if makes_cuda_graphs(backend, device):
        return _once_under_checkpoint(compile_whole(function, mode="reduce-overhead"))
    return _once_under_checkpoint(compile_whole(function, options={"cpp_wrapper": device.type == "cpu"}))


def _once_under_checkpoint(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Allows a module under `torch.utils.checkpoint` to leave something in an attribute, as layers leave their auxiliary loss.

    torch refuses that, for a recomputation in backward would not leave it again. Here it must not: it is to count once.
    """
    import torch._dynamo
    from torch._dynamo.exc import TorchDynamoException

    def call(*args: Any) -> Any:
        try:
            return compiled(*args)
        except TorchDynamoException:  # while compiling: nothing has been computed yet
            with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True):
                return compiled(*args)

    return call


def _kind(value: Any) -> Any:
    """What a compiled function depends on: all but the sizes, of which 1 is special to torch's compiler."""
    if isinstance(value, Tensor):
        return value.dtype, value.device, tuple(size == 1 for size in value.shape), value.is_contiguous()
    return tuple(map(_kind, value)) if isinstance(value, list) else value


class _Compiled:
    """A function that is compiled once for every kind of arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.variants: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *args: Any) -> Any:
        args = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)  # a derivative is never taken through a pass
        kind = tuple(map(_kind, args)), torch.is_grad_enabled()
        if kind not in self.variants:
            self.variants[kind] = compile_whole(self.function, dynamic=True)
        return self.variants[kind](*args)


@cache
def compiled_passes() -> Passes:
    """`passes.PLAIN`, compiled: pass by pass, and all of a forward or a backward as one."""
    one_by_one = {name: _Compiled(one) for name, one in vars(PLAIN).items() if one is not None}
    return Passes(**one_by_one, forward=_Compiled(forward), backward=_Compiled(backward))
