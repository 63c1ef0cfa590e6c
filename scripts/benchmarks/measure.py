"""Seconds and bytes of steps, functions without arguments that do the work once and return what they made."""

import ctypes
import os
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from random import Random
from statistics import median

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]
STATM = Path("/proc/self/statm")


def in_turn(steps: Mapping[str, Step], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every step in every round. A round takes each step once, in an order of its own."""
    clock = _gpu_seconds if device.type == "cuda" else _cpu_seconds
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for k in range(rounds):
        for name in Random(k).sample(list(steps), len(steps)):
            seconds[name].append(clock(steps[name]))
    return seconds


def median_ratio(seconds: list[float], base: list[float]) -> float:
    """The median over rounds of the ratio within a round: what slows all of a round down cancels."""
    return median(s / b for s, b in zip(seconds, base, strict=True))


def saved_bytes(step: Step) -> int:
    """Bytes that autograd saves for backward, parameters and inputs included; each storage counts once."""
    kept: dict[int, torch.UntypedStorage] = {}  # held until the end, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(step: Step, device: torch.device) -> int:
    """Bytes of torch's allocator at the highest point of a step, above those before it.

    What is allocated counts, written to or not: torch's own batch norm on a CPU allocates one tensor that it drops unused.
    """
    if device.type == "cuda":
        return _gpu_peak(step, device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler writes to the screen
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes: list[int] = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes, initial=0))


def resident_bytes() -> int:
    """Bytes of this process that lie in main memory, as Linux tells them, less what is free and the C library can give back.

    What glibc keeps of freed memory comes and goes by some megabytes from step to step; it is given back first.
    """
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _gpu_peak(step: Step, device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _gpu_seconds(step: Step) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1000
