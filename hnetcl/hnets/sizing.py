"""The one size that a generator leaves open, found from the wanted ratio of trainable to generated values."""

import logging
from collections.abc import Callable, Iterable, Iterator
from math import ceil

from hnetcl.errors import ArgumentError

DEFAULT_COMPRESSION = 0.95
logger = logging.getLogger("hnetcl")


def largest_size(
    compression: float, generated: int, trainable: Callable[[int], int], sizes: Iterable[int], noun: str = "chunk size"
) -> int:
    """The first of `sizes`, from large to small, that stays within the ratio.

    Args:
        compression: the wanted ratio.
        generated: values generated for a task.
        trainable: size -> trainable values of such a hypernetwork.
        sizes: that come into question.
        noun: what they are.

    Raises:
        ArgumentError: none does.
    """
    size, least = _nearest_size(compression, generated, trainable, sizes)
    if not least <= compression:
        rule = f"the smallest ratio that a {noun} reaches is {least:.3f} (less with smaller hidden layers or embeddings)"
        raise ArgumentError("compression", compression, rule)
    return size


def find_chunk_size(
    chunk_size: int | None,
    compression: float | None,
    most: int,
    generated: int,
    trainable: Callable[[int], int],
    default: float = DEFAULT_COMPRESSION,
) -> tuple[int, str]:
    """`chunk_size`, `most` at most; where it is None, the largest that stays within the wanted ratio.

    A ratio that the user gave is a limit, and refused where it is out of reach. The default one is a wish: small networks can't
    come to it, and then get the chunk size with the smallest ratio, which the log "hnetcl" says.

    Args:
        chunk_size, compression: what the user gave.
        most: the largest chunk size that comes into question.
        generated: values generated for a task.
        trainable: chunk size -> trainable values.
        default: the ratio where nothing was given.

    Returns:
        The chunk size; what there is to say of it, or an empty string.

    Raises:
        ArgumentError: both given, or a given ratio that none reaches.
    """
    if chunk_size is not None:
        if compression is not None:
            raise ArgumentError("chunk_size", chunk_size, f"can't be given with compression={compression}")
        return min(chunk_size, most), ""
    if compression is not None:
        return largest_size(compression, generated, trainable, chunk_sizes(most)), ""
    size, least = _nearest_size(default, generated, trainable, chunk_sizes(most))
    if least <= default:
        return size, ""
    note = f"no chunk size comes to compression {default:g}: taken is the smallest in reach, {least:.3f}"
    logger.info(note)
    return size, note


def _nearest_size(
    compression: float, generated: int, trainable: Callable[[int], int], sizes: Iterable[int]
) -> tuple[int, float]:
    """The first size that stays within the ratio, else the one that comes nearest to it; and its ratio."""
    best, least = 0, float("inf")
    for size in sizes:
        ratio = trainable(size) / generated
        if ratio < least:
            best, least = size, ratio
        if ratio <= compression:
            break
    return best, least


def chunk_sizes(values: int) -> Iterator[int]:
    """The sizes of 1, 2, 3 ... equal chunks of so many values, each once: about 2 sqrt(values) of them."""
    size = values
    yield size
    while size > 1:
        size = ceil(values / ceil(values / (size - 1)))
        yield size
