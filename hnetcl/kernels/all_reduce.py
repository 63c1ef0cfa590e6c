"""Sums over the ranks of torch.distributed, for batch norm by the statistics of all ranks' batches together.

Nothing else is sent: 1 + d + d (d + 1) / 2 values for each of the Q numbers forward, d + d^2 backward. A process that has no
group never gets here.
"""

from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

Group: TypeAlias = Any  # torch.distributed.ProcessGroup, which does not exist in every build of torch


def moments_of_all(count: int, mean: Tensor, cov: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's moments -> those of all ranks' values together.

    Two all-reduces, for the sums of squares are centred at the common mean. A rank without values has no say.

    Args:
        count: values per channel.
        mean: [d, Q].
        cov: the biased covariance [Q, d, d].

    Returns:
        The same three; the count as a 0-dim tensor, which the host need not wait for.
    """
    d = mean.shape[0]
    if not count:
        mean, cov = torch.zeros_like(mean), torch.zeros_like(cov)
    packed = torch.cat([mean.flatten() * count, mean.new_full((1,), count)])
    dist.all_reduce(packed, group=group)
    total, common = packed[-1], (packed[:-1] / packed[-1]).view(mean.shape)

    i, j = torch.triu_indices(d, d, device=mean.device)
    apart = (mean - common).T
    upper = (count * (cov + apart.unsqueeze(-1) * apart.unsqueeze(-2)))[:, i, j]
    dist.all_reduce(upper, group=group)
    outer = torch.empty_like(cov)
    outer[:, i, j] = upper
    outer[:, j, i] = upper
    return total, common, outer / total


def gradient_sums_of_all(total: Tensor, outer: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """This rank's s = sum g [d, Q] and G = sum g (x - mu)^T [Q, d, d] -> those of all ranks, in one all-reduce."""
    packed = torch.cat([total.flatten(), outer.flatten()])
    dist.all_reduce(packed, group=group)
    sizes = [total.numel(), outer.numel()]
    first, second = packed.split(sizes)
    return first.view(total.shape), second.view(outer.shape)
