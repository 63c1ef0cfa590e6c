"""What kernel sizes, strides and their like may be."""

from collections.abc import Sequence
from operator import index
from typing import Literal

from hnetcl.errors import ArgumentError

Size = int | Sequence[int]
Padding = tuple[int, ...] | Literal["same", "valid"]


def per_axis(name: str, value: Size, axes: int | None = None, least: int = 1) -> tuple[int, ...]:
    """A value for each axis.

    Args:
        name: of the argument, for messages.
        value: one for all axes, or one for each.
        axes: how many there are; None where only the input tells: then one value is for all.
        least: that is allowed.

    Raises:
        ArgumentError: it is something else.
    """
    values = tuple(value) if isinstance(value, Sequence) else (value,) * (axes or 1)
    try:
        whole = tuple(map(index, values))
    except TypeError:
        whole = ()
    if not whole or len(whole) != (axes or len(whole)) or min(whole) < least:
        several = "" if axes == 1 else f", or {axes or 'several'} of them"
        raise ArgumentError(name, value, f"must be a whole number of at least {least}{several}")
    return whole


def sides(padding: Padding | str, kernel_size: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    """What a convolution adds before and behind every axis; of an odd total one more behind, as torch does."""
    if not isinstance(padding, str):
        return [(side, side) for side in padding]
    totals = [step * (k - 1) if padding == "same" else 0 for k, step in zip(kernel_size, dilation, strict=True)]
    return [(total // 2, total - total // 2) for total in totals]
