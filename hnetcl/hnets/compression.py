"""The one size that a hypernetwork leaves open, found from the wanted ratio of trainable to written numbers."""

from collections.abc import Callable, Iterable, Iterator
from math import ceil

from hnetcl.errors import ArgumentError

DEFAULT_COMPRESSION = 0.95


def largest_size(
    compression: float, written: int, trainable: Callable[[int], int], sizes: Iterable[int], noun: str = "chunk size"
) -> int:
    """The first of `sizes`, from large to small, that stays within the ratio.

    Args:
        compression: the wanted ratio.
        written: numbers written for a task.
        trainable: size -> trainable numbers of such a hypernetwork.
        sizes: that come into question.
        noun: what they are.

    Raises:
        ArgumentError: none does.
    """
    least = float("inf")
    for size in sizes:
        ratio = trainable(size) / written
        if ratio <= compression:
            return size
        least = min(least, ratio)
    rule = f"the smallest ratio that a {noun} reaches is {least:.3f} (less with smaller hidden layers or embeddings)"
    raise ArgumentError("compression", compression, rule)


def find_chunk_size(
    chunk_size: int | None, compression: float | None, most: int, written: int, trainable: Callable[[int], int]
) -> int:
    """`chunk_size`, `most` at most; where it is None, the largest that stays within `compression` (0.95 where none is given).

    Raises:
        ArgumentError: both given, a chunk size below 1, or a ratio that none reaches.
    """
    if chunk_size is None:
        wanted = DEFAULT_COMPRESSION if compression is None else compression
        return largest_size(wanted, written, trainable, chunk_sizes(most))
    if compression is not None:
        raise ArgumentError("chunk_size", chunk_size, f"can't be given beside compression={compression}")
    if chunk_size < 1:
        raise ArgumentError("chunk_size", chunk_size, "must be at least 1")
    return min(chunk_size, most)


def chunk_sizes(numbers: int) -> Iterator[int]:
    """The sizes of 1, 2, 3 ... equal chunks of so many numbers, each once: about 2 sqrt(numbers) of them."""
    size = numbers
    yield size
    while size > 1:
        size = ceil(numbers / ceil(numbers / (size - 1)))
        yield size
