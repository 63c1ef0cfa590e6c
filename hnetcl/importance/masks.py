"""Which of the main network's parameters a task uses."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.hnets.base import Shapes


def head_masks(shapes: Shapes, outputs: Sequence[Sequence[int]], head: str = "head.*") -> Tensor:
    """For a network with one head for all tasks: 0 for weights and biases of outputs that a task has not, 1 for all others.

    Args:
        shapes: name -> shape of the P parameters, as the hypernetwork has them.
        outputs: of each of T tasks, the network's outputs that are its own.
        head: name pattern (as in a shell) of the last layer's parameters: weight [out, in] or, as `layers.Linear` has it,
            [1, out, in]; bias [out].

    Returns:
        bool [T, P], in the order of `shapes`.

    Raises:
        ArgumentError: no name matches, a shape is none of these, or there is no such output.
    """
    found = [name for name in shapes if fnmatchcase(name, head)]
    if not found:
        raise ArgumentError("head", head, f"matches none of {', '.join(shapes)}")
    masks = {name: torch.ones(len(outputs), *shape, dtype=torch.bool) for name, shape in shapes.items()}
    for name in found:
        shape = tuple(shapes[name])
        if not 1 <= len(shape) <= 3 or (len(shape) == 3 and shape[0] != 1):
            raise ArgumentError("head", head, f"{name} has shape {shape}; allowed: [out], [out, in], [1, out, in]")
        size = shape[len(shape) == 3]
        if any(not 0 <= output < size for some in outputs for output in some):
            raise ArgumentError("outputs", [list(some) for some in outputs], f"must be from 0 to {size - 1} ({name})")
        axis = [size if place == (len(shape) == 3) else 1 for place in range(len(shape))]
        own = torch.zeros(len(outputs), size, dtype=torch.bool)
        for task, some in enumerate(outputs):
            own[task, list(some)] = True
        masks[name] &= own.reshape(len(outputs), *axis)
    return torch.cat([mask.flatten(1) for mask in masks.values()], 1)
