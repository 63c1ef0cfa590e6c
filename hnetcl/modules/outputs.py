"""Inputs and outputs of modules that take or give more than one tensor."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from hnetcl.errors import ArgumentError


def as_arguments(x: Any) -> tuple[Any, ...]:
    """What a network is called with: a tuple is several inputs; a tensor, dict or list is one."""
    return x if isinstance(x, tuple) else (x,)


def device_of(x: Any) -> torch.device:
    """Of the first tensor in an input.

    Raises:
        ValueError: there is none.
    """
    for leaf in tree_leaves(x):
        if isinstance(leaf, Tensor):
            return leaf.device
    raise ValueError(f"expected an input with a tensor in it, got {type(x).__name__}")


def to_float(outputs: Any) -> Any:
    """The same outputs, half-precision tensors among them in float32."""
    low = (torch.bfloat16, torch.float16)
    return tree_map(lambda leaf: leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in low else leaf, outputs)


def main_logits(outputs: Any) -> Tensor:
    """The logits [N, K] in what a network returns: the tensor itself, the entry called `logits`, or the first of several.

    Raises:
        ArgumentError: there are none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    logits = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    if logits is None and isinstance(outputs, tuple | list) and outputs:
        logits = outputs[0]
    if not isinstance(logits, Tensor):
        raise ArgumentError("net", type(outputs).__name__, "must return logits, or a tuple or dict with `logits` in it")
    return logits


def auxiliary_logits(outputs: Any) -> list[Tensor]:
    """What else of the shape of the logits a network returns in training, as GoogLeNet's auxiliary classifiers do.

    Raises:
        ArgumentError: there is something else, of which nobody knows what a loss should do with it.
    """
    if isinstance(outputs, Tensor):
        return []
    logits, auxiliary = main_logits(outputs), []
    entries = list(outputs.values()) if isinstance(outputs, dict) else outputs if isinstance(outputs, tuple | list) else []
    for entry in entries:
        if entry is None or entry is logits:
            continue
        if not isinstance(entry, Tensor) or entry.shape != logits.shape:
            what = tuple(entry.shape) if isinstance(entry, Tensor) else type(entry).__name__
            raise ArgumentError(
                "net", what, f"in addition to its logits a network may return others of shape {tuple(logits.shape)} only"
            )
        auxiliary.append(entry)
    return auxiliary
