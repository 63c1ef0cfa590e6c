"""Memory that is not there is told in one line: before it is asked for, where that can be known, else when it is refused."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hnetcl.errors import ArgumentError, one_line

MEMINFO = Path("/proc/meminfo")
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of a container
GB = 10**9
SMALL = GB // 10  # bytes that nobody asks about
REFUSALS = (  # how torch says that it can't have that much
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "Storage size calculation overflowed",
    "integer multiplication overflow",
    "Overflow when unpacking long",
)


def available() -> float:
    """Bytes of main memory that can be had at most; infinite where the system does not say."""
    found = [math.inf]
    if MEMINFO.exists():
        lines = (line.split() for line in MEMINFO.read_text().splitlines())
        found.append(sum(1024 * int(line[1]) for line in lines if line[0] in ("MemAvailable:", "SwapFree:")))
    elif "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in LIMITS:
        text = limit.read_text().strip() if limit.exists() else ""
        found += [int(text)] if text.isdecimal() else []
    return min(found)


def require(name: str, value: Any, wanted: float) -> None:
    """Refuses an argument that needs more main memory than there is.

    Raises:
        ArgumentError: `wanted` bytes can't be had.
    """
    if wanted > SMALL and wanted > available():
        raise ArgumentError(name, value, _shortage(_compared(wanted)))


@contextmanager
def allocating(name: str, value: Any, watch: bool = False) -> Iterator[None]:
    """Within, memory that can't be had is an error of this argument, the likeliest cause.

    Args:
        name, value: of the argument.
        watch: ask before each tensor that is made in main memory. Linux hands out more than it has, and kills the process when
            that is used. It costs some microseconds for each operation.

    Raises:
        ArgumentError: memory can't be had.
    """
    try:
        with _Watch() if watch else nullcontext():
            yield
    except (RuntimeError, TypeError, MemoryError) as error:  # torch raises all of them
        if not is_shortage(error):
            raise
        reason = one_line(error).partition(" Exception raised from")[0]  # no C++ stack
        raise ArgumentError(name, value, _shortage(reason)) from error


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory can't be had."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in REFUSALS)


def _compared(wanted: float) -> str:
    return f"{wanted / GB:.3g} GB are needed, {available() / GB:.3g} GB are free"


def _shortage(reason: str) -> str:
    return f"not enough memory ({reason or 'none is left'}); allowed: smaller values"


class _Watch(TorchDispatchMode):
    """Asks before a tensor is made whether there is memory for it."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if args and isinstance(args[0], list | tuple) and all(isinstance(n, int) for n in args[0]):  # a factory's size
            wanted = math.prod(args[0]) * (options.get("dtype") or torch.get_default_dtype()).itemsize
            if wanted > SMALL and torch.device(options.get("device") or "cpu").type == "cpu" and wanted > available():
                raise MemoryError(_compared(wanted))
        return func(*args, **options)
