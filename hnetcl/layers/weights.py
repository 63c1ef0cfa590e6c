"""Random weights of numbers [d, rows, columns, *K], every real component with the same variance."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hnetcl.algebra import Algebra


def kaiming_normal(shape: Sequence[int], fan_in: int) -> Tensor:
    """Components w ~ N(0, 2 / fan_in).

    Each real output sums `fan_in` products w x of independent terms, whatever d is, so the variance of He et al. 2015
    (equation 10) with the real fan-in keeps the scale of activations behind ReLUs in every algebra.
    """
    return independent(shape, 2 / fan_in)


def independent(shape: Sequence[int], variance: float) -> Tensor:
    """Independent Gaussian components."""
    return torch.randn(*shape) * math.sqrt(variance)


def polar(shape: Sequence[int], variance: float) -> Tensor:
    """A modulus from the chi distribution of d degrees of freedom, times a direction that is uniform on the unit sphere.

    With a modulus of scale sigma, E |w|^2 = d sigma^2, so sigma^2 is the variance of a component. For d = 2 the modulus has a
    Rayleigh distribution, and the direction is a uniform phase.
    """
    modulus = torch.randn(*shape).norm(dim=0) * math.sqrt(variance)
    if shape[0] == 2:
        phase = (2 * torch.rand(*shape[1:]) - 1) * math.pi
        return torch.stack([modulus * phase.cos(), modulus * phase.sin()])
    direction = torch.randn(*shape)
    found: Tensor = modulus * direction / direction.norm(dim=0)
    return found


def unitary(shape: Sequence[int], variance: float, algebra: Algebra, groups: int) -> Tensor:
    """Random matrices [rows, columns x K] of numbers with M M* = s 1 or M* M = s 1, one for each group of rows.

    The nearest semi-unitary matrix to a Gaussian one, U V* of its singular value decomposition: it is unique, so that of the
    real block matrix is the block matrix of numbers again. s gives the components the variance.
    """
    normal = torch.randn(*shape, dtype=torch.float64).flatten(2).unflatten(1, (groups, -1))
    found = torch.empty_like(normal)
    for group in range(groups):
        u, _, v = torch.linalg.svd(algebra.block_matrix(normal[:, group]), full_matrices=False)
        rows, columns = normal.shape[2:]
        found[:, group] = (u @ v[:, :columns]).unflatten(0, (algebra.dim, rows))
        found[:, group] *= math.sqrt(variance * algebra.dim * max(rows, columns))
    return found.reshape(*shape).to(torch.get_default_dtype())
