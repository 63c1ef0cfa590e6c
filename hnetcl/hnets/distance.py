"""How far apart what two hypernetworks of one kind write is, without writing it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnetcl.hnets.part import Part

Description = tuple[Tensor, Tensor, Tensor]
PASSES = 40  # multiplications that take as long as what is done to each number apart from matrix products
ALIGNED = 4  # floats


class Layout(NamedTuple):
    """Which chunks of a part lie within one random parameter, so that one scale holds for all of their numbers.

    Args:
        uniform: numbers of these chunks.
        scales: for each of them, the parameter.
        mixed: numbers of all other chunks.
        segments: runs of equal scale in the mixed chunks laid end to end: the parameter, or -1 behind the end.
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
    runs = [run for run in (*enumerate(sizes), (len(sizes), padding)) if run[1]]
    for chunk in range((sum(sizes) + padding) // chunk_size):
        cut, runs = _cut(runs, chunk_size)
        first = cut[0][0]
        if len(cut) == 1 and first < len(sizes) and not constant[first]:
            found.uniform.append(chunk)
            found.scales.append(first)
            continue
        found.mixed.append(chunk)
        for parameter, length in cut:
            if parameter < len(sizes) and constant[parameter]:
                begin = sum(found.lengths)
                found.constants.extend(range(begin, begin + length))
            found.segments.append(parameter if parameter < len(sizes) else -1)
            found.lengths.append(length)
    return found


def _cut(runs: list[tuple[int, int]], size: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Runs of parameters and their lengths, cut at `size` numbers."""
    for i, (parameter, length) in enumerate(runs):
        if length >= size:
            rest = [(parameter, length - size), *runs[i + 1 :]]
            return [*runs[:i], (parameter, size)], [run for run in rest if run[1]]
        size -= length
    return runs, []


class SquaredDistance(torch.autograd.Function):
    r"""Squared distances, task by task, of A W^T from A' W'^T: [B, C, h], [S, h], [B, C, h], [S, h] and W'^T W' [h, h] -> [B].

    With dA = A - A', dW = W - W' and D = A W^T - A' W'^T = dA W^T + A' dW^T, which is [B, C, S] and never formed,

    .. math:: |D|^2 = (D W + A' dW^T W) \cdot dA + (A' dW^T dW) \cdot A', \quad D W = dA\, W^T W + A' dW^T W

    That is O((B C + S) h^2) in place of O(B C S h). Differences are taken first, so that nothing cancels while both are close:
    W^T W is W'^T W' and what dW adds to it. No gradient flows to A' and W'.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, w: Tensor, a_old: Tensor, w_old: Tensor, gram_old: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        da, dw = (a - a_old).flatten(0, 1), w - w_old
        old = a_old.flatten(0, 1)
        mixed, gram_dw = w_old.T @ dw, dw.T @ dw
        cross = mixed.T + gram_dw  # dW^T W
        by_cross = old @ cross
        by_w = torch.addmm(by_cross, da, gram_old + mixed + cross)
        far = _dot(by_cross + by_w, da, len(a)) + _dot(old @ gram_dw, old, len(a))
        return far, by_w.reshape(a.shape), dw

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:3], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if gradients[0] is None:
            return None, None, None, None, None
        a, w, a_old, by_w, dw = ctx.saved_tensors
        twice = 2 * gradients[0][:, None, None]
        ga = (twice * a).flatten(0, 1)
        by_da, by_old = (a - a_old).flatten(0, 1).T @ ga, a_old.flatten(0, 1).T @ ga
        return twice * by_w, (dw @ by_old).addmm_(w, by_da), None, None, None


def _dot(x: Tensor, y: Tensor, tasks: int) -> Tensor:
    """Sums of x * y, task by task: [B * C, h] twice -> [B]."""
    sums: Tensor = torch.linalg.vecdot(x.reshape(tasks, -1), y.reshape(tasks, -1))
    return sums


class Ruler(nn.Module):
    """Measures what a part writes against what it wrote before.

    Chunks that lie within one random parameter are compared by their factors (`SquaredDistance`), all others by their numbers.

    Args:
        part: of the kind to be measured.
        constant: for each of its parameters, whether it starts at constants.
    """

    scales: Tensor
    mixed: Tensor
    segments: Tensor
    lengths: Tensor
    constants: Tensor
    tail: Tensor

    def __init__(self, part: Part, constant: Sequence[bool]) -> None:
        super().__init__()
        found = layout(part.sizes, constant, part.chunk_size)
        self.uniform, self.runs = len(found.uniform), found.lengths
        scales = torch.full((part.chunks,), -1)
        scales[found.uniform] = torch.tensor(found.scales, dtype=torch.long)
        self.register_buffer("scales", scales, persistent=False)
        for name in ("mixed", "segments", "lengths", "constants"):
            self.register_buffer(name, torch.tensor(getattr(found, name), dtype=torch.long), persistent=False)
        tail = torch.zeros(_width(part) - part.head.in_features)
        tail[0] = 1
        self.register_buffer("tail", tail, persistent=False)

    def saves(self, part: Part, tasks: int) -> int:
        """The multiplications that factors of that many tasks need less than numbers do; negative where they need more."""
        if not self.uniform:
            return 0
        width, rows = _width(part), tasks * part.chunks
        by_factors = (4 * part.chunk_size + 5 * rows) * width**2
        return tasks * self.uniform * part.chunk_size * (3 * part.head.in_features + PASSES) - by_factors

    def widths(self, part: Part, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The scale of every chunk, 0 for mixed ones [C, 1], and of every number of the mixed ones [M * S].

        Args:
            scale: of every parameter.
        """
        known = torch.cat([scale, scale.new_zeros(1)])  # -1 is the zero
        numbers = len(self.mixed) * part.chunk_size
        return known[self.scales][:, None], known[self.segments].repeat_interleave(self.lengths, output_size=numbers)

    def describe(
        self, part: Part, features: Tensor, gain: Tensor, share: Tensor | None, by_chunk: Tensor, by_number: Tensor
    ) -> Description:
        """What a part writes for B tasks.

        Args:
            features: of the part [B, C, H].
            gain: of all constants.
            share: one factor for every parameter; None where all are 1.
            by_chunk, by_number: the `widths`.

        Returns:
            A [B, C, h], zero for mixed chunks; the numbers [B, M * S] of the mixed chunks, less the values that they start at;
            W [S, h]. Behind the H columns comes one for the bias, and zeros.
        """
        if share is not None:
            known = torch.cat([share, share.new_ones(1)])  # -1 is the one
            by_chunk = by_chunk * known[self.scales][:, None]
            runs = zip(by_number.split(self.runs), known[self.segments].unbind(), strict=True)
            by_number = torch.cat([by_number[:0], *(own * factor for own, factor in runs)])
        own = torch.cat([features, self.tail.expand(*features.shape[:2], -1)], -1) * by_chunk
        if len(gain):
            by_number = by_number.index_copy(0, self.constants, by_number.index_select(0, self.constants) * gain)
        numbers: Tensor = part.head(features.index_select(1, self.mixed)).flatten(1) * by_number
        return own, numbers, torch.cat([part.head.weight, part.head.bias[:, None] * self.tail], 1)


def compare(new: Description, old: Description, gram_old: Tensor) -> Tensor:
    """Squared distances [B] of two descriptions; `gram_old` is W^T W of the older one, to which no gradient flows."""
    (a, numbers, w), (a_old, numbers_old, w_old) = new, old
    far: Tensor = SquaredDistance.apply(a, w, a_old, w_old, gram_old)[0]
    return far + F.mse_loss(numbers, numbers_old, reduction="none").sum(1)


def _width(part: Part) -> int:
    """h: columns for the head's inputs and its bias, and so many zeros that the number is one that matrix products like."""
    return -(-(part.head.in_features + 1) // ALIGNED) * ALIGNED
