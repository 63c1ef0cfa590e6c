"""Tensors by name, put where they belong; and a network's copy without its graphs."""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


@torch.no_grad()
def fill(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copies tensors into those of the same names.

    Raises:
        ValueError: one is of another shape or dtype.
    """
    for name, value in tensors.items():
        if own[name].shape != value.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(own[name].shape)}")
        if own[name].dtype != value.dtype:
            raise ValueError(f"{name} is of {value.dtype}, expected {own[name].dtype}")
    for name, value in tensors.items():
        own[name].copy_(value)


def copied(net: nn.Module) -> nn.Module:
    """A copy, in which tensors that attributes hold with a graph are without it: `deepcopy` refuses them."""
    leaves = [leaf for module in net.modules() for leaf in tree_leaves(vars(module))]
    return deepcopy(net, {id(v): v.detach().clone() for v in leaves if isinstance(v, Tensor) and not v.is_leaf})
