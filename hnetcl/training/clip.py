"""Clipping of gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], norm: Tensor, largest: float) -> None:
    """Shortens all gradients together, in place, to a Euclidean norm of at most `largest`. No device waits.

    Gradients whose norm is not finite stay, for `Watch` to name.

    Args:
        norm: of all of them, 0-dim, as `Watch.look` finds it.

    Source: Pascanu et al. 2013 (arXiv:1211.5063), algorithm 1; as torch's `clip_grad_norm_`, which would take the norm again.
    """
    factor = torch.where(norm.isfinite(), largest / (norm + 1e-6), 1.0).clamp(max=1.0)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)
