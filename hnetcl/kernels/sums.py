"""Sums over the ranks of torch.distributed: 1 + d + d (d + 1) / 2 numbers a feature forward, d + d^2 backward."""

from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

Group: TypeAlias = Any  # torch.distributed.ProcessGroup, which does not exist in every build of torch


def moments_of_all(count: int, mean: Tensor, cov: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's count, mean [d, Q] and covariance [Q, d, d] -> those of all ranks' values together.

    Two rounds, for the sums of squares are centred at the common mean. A rank without values has no say.
    """
    d = mean.shape[0]
    if not count:
        mean, cov = torch.zeros_like(mean), torch.zeros_like(cov)
    packed = torch.cat([mean.flatten() * count, mean.new_full((1,), count)])
    dist.all_reduce(packed, group=group)
    total, common = packed[-1], (packed[:-1] / packed[-1]).view(mean.shape)

    row, column = torch.triu_indices(d, d, device=mean.device)
    apart = (mean - common).T
    upper = (count * (cov + apart.unsqueeze(-1) * apart.unsqueeze(-2)))[:, row, column]
    dist.all_reduce(upper, group=group)
    outer = torch.empty_like(cov)
    outer[:, row, column] = upper
    outer[:, column, row] = upper
    return total, common, outer / total


def sums_of_all(total: Tensor, outer: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """This rank's s [d, Q] and G [Q, d, d] -> those of all ranks."""
    packed = torch.cat([total.flatten(), outer.flatten()])
    dist.all_reduce(packed, group=group)
    sizes = [total.numel(), outer.numel()]
    first, second = packed.split(sizes)
    return first.view(total.shape), second.view(outer.shape)
