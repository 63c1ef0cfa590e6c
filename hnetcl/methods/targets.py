"""What is kept for every old task, possibly in another memory, until a step needs some of it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hnetcl.hnets import Record


def joined(records: Sequence[Record]) -> Record:
    """One record of tasks that were recorded in turns."""
    columns = zip(*(record.by_task for record in records), strict=True)
    return Record([torch.cat(column) for column in columns], records[0].common)


def fetched(record: Record, places: Tensor, like: Tensor) -> Record:
    """The record of some tasks, on the device and in the dtype of `like`; it travels in its own dtype.

    Args:
        places: [K] of the record's B, on its device; B places are taken for all of them in order.
    """
    chosen = record if len(places) == len(record.by_task[0]) else record.of(places)
    return _each(chosen, lambda value: moved(value, like.device).to(like.dtype))


def prefetchable(record: Record, device: torch.device) -> Record:
    """The record ready for a journey to that device at every step."""
    return _each(record, lambda value: _pinned(value, device))


def moved(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. Neither the CPU nor a GPU waits for the other."""
    return _pinned(value, device).to(device, non_blocking=True)


def _pinned(value: Tensor, device: torch.device) -> Tensor:
    return value.pin_memory() if device.type == "cuda" and value.device.type == "cpu" else value


def _each(record: Record, function: Callable[[Tensor], Tensor]) -> Record:
    by_task, common = ([function(value) for value in values] for values in (record.by_task, record.common))
    return Record(by_task, common)
