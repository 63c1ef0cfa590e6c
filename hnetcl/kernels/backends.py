"""Which path computes batch norm: the one place that chooses.

| path | computed by | chosen for |
|---|---|---|
| reference | `reference`, in plain PyTorch | backend="reference" |
| closed form | `batch_norm`, by `passes.BLOCKS` (on a GPU `PLAIN`); for d = 1 by torch's own kernel | all else |
| compiled | `batch_norm` by `passes.COMPILED` | backend="compiled", or "auto" where x is large; d > 1 |
| fused | `conv_bn`, by the passes of another path | a convolution and the batch norm behind it |

Two things are decided later, for only the tensors tell: whether the passes can take them (`passes.usable`), and whether torch's
kernel for d = 1 can (`batch_norm.batch_norm` and `normalize`).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from hnetcl.compiling import can_compile
from hnetcl.kernels import batch_norm, conv_bn, passes, reference
from hnetcl.kernels.conv_bn import Convolution
from hnetcl.kernels.passes import Passes
from hnetcl.kernels.reference import Normalized

BACKENDS = ("auto", "reference", "closed_form", "compiled")
AUTO_COMPILED = {"cpu": 2**22, "cuda": 2**20}  # values in x from which "auto" compiles; below, its seconds are hardly won back


@dataclass(frozen=True)
class Kernel:
    """A path.

    Args:
        batch_norm, normalize: the two functions of `reference`.
        passes: how the closed form computes, for what is built on it; None where it doesn't.
    """

    batch_norm: Callable[..., Normalized]
    normalize: Callable[..., Tensor]
    passes: Passes | None


REFERENCE = Kernel(reference.batch_norm, reference.normalize, None)
CLOSED_FORM = Kernel(batch_norm.batch_norm, batch_norm.normalize, passes.BLOCKS)
COMPILED = Kernel(
    partial(batch_norm.batch_norm, passes=passes.COMPILED),
    partial(batch_norm.normalize, passes=passes.COMPILED),
    passes.COMPILED,
)


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
    return COMPILED if _can_compile(x.device.type) else CLOSED_FORM


def fused(kernel: Kernel, conv: Convolution, conv_weight: Tensor, conv_bias: Tensor | None) -> Kernel:
    """The kernel that normalizes conv(x) where `kernel` normalizes x. The reference is not fused, but composed.

    Args:
        conv_weight: [out, in / groups, *K].
        conv_bias: [out] or None.
    """
    if kernel.passes is not None:
        options: dict[str, Any] = {"conv": conv, "conv_weight": conv_weight, "conv_bias": conv_bias, "passes": kernel.passes}
        return Kernel(partial(conv_bn.conv_batch_norm, **options), partial(conv_bn.conv_normalize, **options), kernel.passes)

    def convolved(x: Tensor) -> Tensor:
        z = conv(*conv_bn.autocast(x, conv_weight))
        return z if conv_bias is None else z + conv_bias.to(z.dtype).reshape(-1, *[1] * (z.ndim - 2))

    return Kernel(
        lambda x, *args, **options: kernel.batch_norm(convolved(x), *args, **options),
        lambda x, *args, **options: kernel.normalize(convolved(x), *args, **options),
        None,
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
