"""Which kernel computes batch norm."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from hnetcl.kernels import closed_form, reference
from hnetcl.kernels.compiled import can_compile, compiled_passes
from hnetcl.kernels.passes import Passes

AUTO_COMPILED = {"cpu": 2**22, "cuda": 2**20}  # values in x from which "auto" compiles; below, its seconds are hardly won back


@dataclass(frozen=True)
class Kernel:
    """The two functions of `reference`, in one of their implementations; and synchronised batch norm, where it has one.

    `passes` is how the closed form computes, for what is built on it.
    """

    batch_norm: Callable[..., tuple[Tensor, Tensor, Tensor]]
    normalize: Callable[..., Tensor]
    synchronised_batch_norm: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = closed_form.synchronised_batch_norm
    passes: Passes | None = None


REFERENCE = Kernel(reference.batch_norm, reference.normalize)
CLOSED_FORM = Kernel(closed_form.batch_norm, closed_form.normalize)


def select(backend: str, x: Tensor, d: int) -> Kernel:
    """The kernel for x.

    Args:
        backend: "reference", "closed_form" or "compiled". "auto" is compiled for large x, else closed_form.
        d: components of a number; real numbers have torch's own kernel and are never compiled.
    """
    if backend == "reference":
        return REFERENCE
    if d == 1 or backend == "closed_form" or torch.compiler.is_compiling():
        return CLOSED_FORM
    if backend == "auto" and x.numel() < AUTO_COMPILED.get(x.device.type, 2**62):
        return CLOSED_FORM
    return _compiled() if _can_compile(x.device.type) else CLOSED_FORM


@cache
def _compiled() -> Kernel:
    passes = compiled_passes()
    return Kernel(
        partial(closed_form.batch_norm, passes=passes),
        partial(closed_form.normalize, passes=passes),
        partial(closed_form.synchronised_batch_norm, passes=passes),
        passes,
    )


@cache
def _can_compile(device: str) -> bool:
    """Asked once for a device type, and warned of once."""
    works = can_compile(torch.device(device))
    if not works:
        warnings.warn(
            f"torch.compile does not work for {device} on this machine (is there a C++ compiler?): batch norm runs its "
            "closed form uncompiled, which is slower",
            stacklevel=2,
        )
    return works
