"""How far apart what two hypernetworks of one kind write is, without writing it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hnetcl.hnets.part import Part

Description = tuple[Tensor, Tensor, Tensor]
PASSES = 40  # multiplications that take as long as what is done to each number apart from matrix products


class Layout(NamedTuple):
    """Which chunks of a part lie within one random parameter, so that one scale holds for all of their numbers.

    Args:
        uniform: numbers of these chunks.
        scales: for each of them, the parameter.
        mixed: numbers of all other chunks.
        segments: runs of equal scale in the mixed chunks laid end to end: the parameter, or -1 for constants and what lies
            behind the end.
        lengths: of the segments.
        constants: places of the constants there.
    """

    uniform: list[int]
    scales: list[int]
    mixed: list[int]
    segments: list[int]
    lengths: list[int]
    constants: list[int]


def layout(sizes: Sequence[int], constant: Sequence[bool], chunk_size: int) -> Layout:
    """The layout of parameters of these sizes, some of which start at constants."""
    found = Layout([], [], [], [], [], [])
    padding = -sum(sizes) % chunk_size
    runs = [*enumerate(sizes), (len(sizes), padding)]
    for chunk in range((sum(sizes) + padding) // chunk_size):
        cut, runs = _cut(runs, chunk_size)
        first = cut[0][0]
        if len(cut) == 1 and first < len(sizes) and not constant[first]:
            found.uniform.append(chunk)
            found.scales.append(first)
            continue
        found.mixed.append(chunk)
        for parameter, length in cut:
            is_random = parameter < len(sizes) and not constant[parameter]
            if parameter < len(sizes) and not is_random:
                begin = sum(found.lengths)
                found.constants.extend(range(begin, begin + length))
            found.segments.append(parameter if is_random else -1)
            found.lengths.append(length)
    return found


def _cut(runs: list[tuple[int, int]], size: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Runs of parameters and their lengths, cut at `size` numbers."""
    for i, (parameter, length) in enumerate(runs):
        if length >= size:
            return [*runs[:i], (parameter, size)], [(parameter, length - size), *runs[i + 1 :]]
        size -= length
    return runs, []


class SquaredDistance(torch.autograd.Function):
    r"""Squared distances of the rows of A W^T from those of A' W'^T: [n, h], [S, h], [n, h], [S, h] -> [n].

    With D = A W^T - A' W'^T = (A - A') W^T + A' (W - W')^T, which is [n, S] and never formed,

    .. math:: |D_i|^2 = (D W)_i \cdot (A - A')_i + (D (W - W'))_i \cdot A'_i

    and D W = (A - A') (W^T W) + A' (W - W')^T W. That is O((n + S) h^2) in place of O(n S h). Differences are taken first, so
    that nothing cancels while both are close. No gradient flows to A' and W'.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, w: Tensor, a_old: Tensor, w_old: Tensor) -> tuple[Tensor, Tensor]:
        da, dw = a - a_old, w - w_old
        cross = dw.T @ w
        by_w = torch.addmm(a_old @ cross, da, w.T @ w)
        by_dw = torch.addmm(a_old @ (dw.T @ dw), da, cross.T)
        return (by_w * da).sum(1) + (by_dw * a_old).sum(1), by_w

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, w, a_old, w_old, by_w = ctx.saved_tensors
        twice = 2 * gradients[0][:, None]
        ga = twice * a
        grad_w = torch.addmm((w - w_old) @ (a_old.T @ ga), w, (a - a_old).T @ ga)
        return twice * by_w, grad_w, None, None


class Ruler(nn.Module):
    """Measures what a part writes against what it wrote before.

    Chunks that lie within one random parameter are compared by their factors (`SquaredDistance`), all others by their numbers.

    Args:
        part: of the kind to be measured.
        constant: for each of its parameters, whether it starts at constants.
    """

    uniform: Tensor
    scales: Tensor
    mixed: Tensor
    segments: Tensor
    lengths: Tensor
    constants: Tensor

    def __init__(self, part: Part, constant: Sequence[bool]) -> None:
        super().__init__()
        for name, values in layout(part.sizes, constant, part.chunk_size)._asdict().items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.long), persistent=False)

    def saves(self, part: Part, tasks: int) -> int:
        """The multiplications that factors of that many tasks need less than numbers do; negative where they need more."""
        width, rows = part.head.in_features + 1, tasks * len(self.uniform)
        by_factors = (5 * part.chunk_size + 6 * rows) * width**2 if rows else 0
        return rows * part.chunk_size * (3 * width + PASSES) - by_factors

    def describe(self, part: Part, embeddings: Tensor, scale: Tensor, gain: Tensor) -> Description:
        """What a part writes for B tasks, [B, E].

        Args:
            scale: of every parameter; that of constants is not used.
            gain: of all constants.

        Returns:
            A [B, C, H + 1] of the uniform chunks; the numbers [B, M * S] of the mixed ones, constants less their initial
            values; W [S, H + 1]. The last column is for the bias.
        """
        features = part.features(embeddings)
        own = features.index_select(1, self.uniform)
        own = torch.cat([own, torch.ones_like(own[..., :1])], -1) * scale.index_select(0, self.scales)[:, None]
        numbers: Tensor = part.head(features.index_select(1, self.mixed)).flatten(1)
        known = torch.cat([scale, scale.new_zeros(1)])[self.segments]  # -1 is the zero
        factor = known.repeat_interleave(self.lengths, output_size=numbers.shape[1])
        numbers = numbers * factor.index_copy(0, self.constants, gain)
        return own, numbers, torch.cat([part.head.weight, part.head.bias[:, None]], 1)


def compare(new: Description, old: Description) -> Tensor:
    """Squared distances [B] of two descriptions; no gradient flows to the older one."""
    (a, numbers, w), (a_old, numbers_old, w_old) = new, old
    far = (numbers - numbers_old).square().sum(1)
    if a.shape[1]:
        by_chunk: Tensor = SquaredDistance.apply(a.flatten(0, 1), w, a_old.flatten(0, 1), w_old)[0]
        far = far + by_chunk.reshape(a.shape[:2]).sum(1)
    return far
