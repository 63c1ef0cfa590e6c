"""What the layers of a network are given while it runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hnetcl.bn import ConvBatchNorm
from hnetcl.layers import ConvNd, Linear

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, ConvNd, ConvBatchNorm)
LINEAR = (nn.Linear, Linear)
INPUT = "input"  # in place of a layer's name: the network's own input, all of its values


def layer_names(net: nn.Module) -> list[str]:
    """All linear and convolution layers; a convolution that is one layer with its batch norm counts as a whole."""
    whole = [name for name, module in net.named_modules() if isinstance(module, ConvBatchNorm)]
    names = [name for name, module in net.named_modules() if isinstance(module, CONVOLUTIONS + LINEAR)]
    return [name for name in names if not any(name.startswith(f"{each}.") for each in whole)]


@contextmanager
def watched(net: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within, one run of the network leaves the inputs of these layers in the dict, in the order in which the layers run.

    Each is [N, D] in float32 or better: of a convolution's [N, D, *S] the mean over space, of a linear layer's [N, *S, D] the
    mean over all axes between, of complex numbers real and imaginary parts side by side. Of a layer that runs several times it
    is the mean over its runs.
    """
    found: dict[str, Tensor] = {}
    runs: dict[str, int] = {}

    def see(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        x = features(x, module)
        runs[name] = runs.get(name, 0) + 1
        found[name] = x if name not in found else found[name] + (x - found[name]) / runs[name]

    handles = []
    for name in names:
        module = net if name == INPUT else net.get_submodule(name)
        handles.append(
            module.register_forward_pre_hook(lambda m, args, kwargs, name=name: see(name, m, args, kwargs), with_kwargs=True)
        )
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def features(x: Tensor, module: nn.Module) -> Tensor:
    """A layer's input as features [N, D]."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if isinstance(module, CONVOLUTIONS):
        x = x.flatten(2).mean(2) if x.ndim > 2 else x
    elif isinstance(module, LINEAR):
        x = x.flatten(1, -2).mean(1) if x.ndim > 2 else x
    else:
        x = x.flatten(1)
    return torch.cat([x.real, x.imag], 1) if x.is_complex() else x
