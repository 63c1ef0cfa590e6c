"""What holds for a whole process: device, seed, threads, determinism. Set per run, and put back after it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from hnetcl.errors import ArgumentError


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one, else the CPU.

    Raises:
        ArgumentError: no such device on this machine.
    """
    available = [
        "cpu",
        *(["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))] if torch.cuda.is_available() else []),
    ]
    if name == "auto":
        name = "cuda" if "cuda" in available else "cpu"
    if name not in available:
        raise ArgumentError("device", name, f"not available on this machine; allowed: auto, {', '.join(available)}")
    return torch.device(name)


@contextmanager
def engine(seed: int, *, threads: int | None = None, deterministic: bool = False) -> Iterator[None]:
    """Within, the random numbers of torch, Python and numpy start at `seed`.

    Args:
        seed: of torch's global generators of all devices, of Python's `random` and of numpy's global generator: networks and
            data of users may draw from any.
        threads: of the CPU; None leaves the number as it is.
        deterministic: refuse operations whose results vary from run to run (slower on a GPU).
    """
    before, change = torch.get_num_threads(), deterministic and not torch.are_deterministic_algorithms_enabled()
    others = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.set_num_threads(threads or before)
            if change:  # the call imports torch's compiler, a second that most runs need not spend
                torch.use_deterministic_algorithms(True)
            yield
        finally:
            random.setstate(others[0])
            np.random.set_state(others[1])
            torch.set_num_threads(before)
            if change:
                torch.use_deterministic_algorithms(False)


def random_states(device: torch.device) -> dict[str, Any]:
    """Where the global generators stand, of torch (on the CPU and that device), Python and numpy: tensors and plain values."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
    }


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """The inverse of `random_states`; that of a GPU is left alone where the states come from another kind of device."""
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
