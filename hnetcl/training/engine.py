"""What holds for a whole process: device, seed, threads, determinism. Set per run, and put back after it."""

from collections.abc import Iterator
from contextlib import contextmanager

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
def engine(seed: int, threads: int | None = None, deterministic: bool = False) -> Iterator[None]:
    """Within, torch's random numbers start at `seed`.

    Args:
        seed: of the global generators of all devices.
        threads: of the CPU; None leaves the number as it is.
        deterministic: refuse operations whose results vary from run to run (slower on a GPU).
    """
    before, change = torch.get_num_threads(), deterministic and not torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        try:
            torch.manual_seed(seed)
            torch.set_num_threads(threads or before)
            if change:  # the call imports torch's compiler, a second that most runs need not spend
                torch.use_deterministic_algorithms(True)
            yield
        finally:
            torch.set_num_threads(before)
            if change:
                torch.use_deterministic_algorithms(False)
