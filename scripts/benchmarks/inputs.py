"""Arguments that several subjects share, and forward and backward as one step."""

import math
from argparse import ArgumentParser, Namespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Step
from hnetcl.algebra import as_algebra
from hnetcl.errors import ArgumentError, one_of

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_arguments(parser: ArgumentParser, shape: str, axes: str) -> None:
    parser.add_argument("--shape", default=shape, help=f"of the input: {axes} (default %(default)s)")
    parser.add_argument("--dtype", default="float32", help=f"of the input: {', '.join(DTYPES)} (default %(default)s)")
    parser.add_argument("--eval", action="store_true", help="normalize by running statistics, not by the batch's")


def at_least(least: int, arguments: Namespace, *names: str) -> None:
    """Raises ArgumentError where one of the arguments is smaller; one that was left out is not."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ArgumentError(name, value, f"must be at least {least}")


def dtype(arguments: Namespace) -> torch.dtype:
    """The input's.

    Raises:
        ArgumentError: there is no such dtype.
    """
    if arguments.dtype not in DTYPES:
        raise one_of("dtype", arguments.dtype, DTYPES)
    return DTYPES[arguments.dtype]


def shape(text: str, least: int, most: int, example: str) -> tuple[int, ...]:
    """N,C,... as numbers.

    Raises:
        ArgumentError: these are not `least` to `most` positive numbers.
    """
    parts = text.split(",")
    if not least <= len(parts) <= most or not all(part.isdecimal() and int(part) > 0 for part in parts):
        count = f"{least} to {most}" if least < most else str(least)
        raise ArgumentError("shape", text, f"must be {count} positive whole numbers, as in {example}")
    return tuple(int(part) for part in parts)


def settings(arguments: Namespace, x_shape: tuple[int, ...]) -> dict[str, Any]:
    """For the record."""
    mode = "evaluation" if arguments.eval else "training"
    input_bytes = math.prod(x_shape) * dtype(arguments).itemsize
    return {"shape": list(x_shape), "dtype": arguments.dtype, "mode": mode, "input_bytes": input_bytes}


def check_values(normalized: tuple[int, ...], training: bool, text: str) -> None:
    """Raises ArgumentError where batch norm of such a shape [N, C, *S] has no statistics to take."""
    if training and math.prod(normalized) == normalized[1]:
        raise ArgumentError("shape", text, "batch statistics need more than one value per channel (with --eval one will do)")


def check_width(algebra: str, channels: int, name: str, text: object) -> None:
    """Raises ArgumentError, for the argument of that name and text, where the channels are no whole numbers of the algebra."""
    try:
        as_algebra(algebra).numbers(channels)
    except ArgumentError as error:
        raise ArgumentError(name, text, f"the channels {error.allowed}; --only leaves contenders out") from error


def forward_backward(layer: nn.Module, x: Tensor, gradient: Tensor) -> Step:
    """Forward and backward by all of the layer's parameters and the input x."""
    leaves = [x, *layer.parameters()]

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(x), leaves, gradient)

    return step
