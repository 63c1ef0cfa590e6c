"""Functions through torch.compile, and whether it works on a machine. The only file that calls torch.compile."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

Backend = str | Callable[..., Any]  # torch.compile's `backend`


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works for this device: found out by compiling something small, which takes seconds."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        torch.compile(_add, dynamic=True, fullgraph=True)(torch.zeros(64, device=device))
    except (TorchDynamoException, RuntimeError):
        return False
    return True


def _add(x: Tensor) -> Tensor:
    return x + 1


def compile_whole(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A function as one graph.

    torch counts the variants of one code object and gives up after eight; so this compiles a copy, with a count of its own.

    Args:
        function: a plain function, not a method or a partial one.
        options: torch.compile's.
    """
    assert isinstance(function, FunctionType)
    f = function
    copy = FunctionType(f.__code__.replace(), f.__globals__, f.__name__, f.__defaults__, f.__closure__)
    return torch.compile(copy, fullgraph=True, **options)


def compile_step(function: Callable[..., Any], backend: Backend, device: torch.device) -> Callable[..., Any]:
    """A function with its backward as one graph each, made for thousands of calls.

    With torch's own backend they run as CUDA graphs on a GPU, and are called from C++ on a CPU.
    """
    if backend != "inductor":
        return compile_whole(function, backend=backend)
    if makes_cuda_graphs(backend, device):
        return compile_whole(function, mode="reduce-overhead")
    return compile_whole(function, options={"cpp_wrapper": device.type == "cpu"})


def makes_cuda_graphs(backend: Backend, device: torch.device) -> bool:
    """Whether what `compile_step` returns runs as CUDA graphs."""
    return backend == "inductor" and device.type == "cuda"
