"""The squared distance of what a hypernetwork generates from what it generated before, without generating it."""

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnetcl.hnets.base import Record
from hnetcl.hnets.generators.chunk_mlp import ChunkMLP

PASSES = 40  # multiplications that take as long as what is done to each value apart from matrix products
ALIGNED = 4  # floats


def _cut(runs: list[tuple[int, int]], size: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Runs of parameters and their lengths, cut at `size` values."""
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
        distance = _dot(by_cross + by_w, da, len(a)) + _dot(old @ gram_dw, old, len(a))
        return distance, by_w.reshape(a.shape), dw

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


class ByTask(NamedTuple):
    """What an MLP generates for B tasks, without its head.

    Args:
        features: A [B, C, h], what the head sees times the scale of the chunk, zero for mixed chunks. Behind the H columns
            comes one for the bias, and zeros.
        mixed: values [B, M * S] of the mixed chunks, less those that they start at.
    """

    features: Tensor
    mixed: Tensor


class Common(NamedTuple):
    """What is the same for all tasks in the record of an MLP.

    Args:
        weight: W [S, h] of the head, with its bias in the column behind the H.
        gram: W^T W.
        by_chunk: the scale of every chunk, 0 for mixed ones [C, 1].
        by_value: the scale of every value of the mixed chunks [M * S].
    """

    weight: Tensor
    gram: Tensor
    by_chunk: Tensor
    by_value: Tensor


Fields = TypeVar("Fields", ByTask, Common)


def _read(kind: type[Fields], tensors: Sequence[Tensor]) -> list[Fields]:
    """The tensors of a `Record` by name, MLP by MLP."""
    count = len(kind._fields)
    return [kind(*tensors[i : i + count]) for i in range(0, len(tensors), count)]


class Chunks(nn.Module):
    """The chunks of an MLP. Those that lie within one random parameter, so that one scale holds for all of their values, are
    compared by their factors (`SquaredDistance`); all others, the mixed ones, by their values.

    Args:
        mlp: whose.
        constant: for each of its parameters, whether it starts at constants.

    Attributes:
        scales: for each chunk the parameter that it lies within, -1 for mixed ones.
        mixed: the mixed chunks.
        segments: runs of equal scale in the mixed chunks laid end to end: the parameter, or -1 behind the end.
        lengths: of the segments.
        constants: places of the constants there.
    """

    scales: Tensor
    mixed: Tensor
    segments: Tensor
    lengths: Tensor
    constants: Tensor
    tail: Tensor

    def __init__(self, mlp: ChunkMLP, constant: Sequence[bool]) -> None:
        super().__init__()
        self.owned = (mlp,)  # by the generator: a tuple hides it from torch, which would save its parameters twice
        end = len(mlp.sizes)
        runs = [run for run in (*enumerate(mlp.sizes), (end, -sum(mlp.sizes) % mlp.chunk_size)) if run[1]]
        self.runs: list[int] = []
        scales, segments, constants = [-1] * mlp.chunks, list[int](), list[int]()
        for chunk in range(mlp.chunks):
            cut, runs = _cut(runs, mlp.chunk_size)
            parameter = cut[0][0]
            if len(cut) == 1 and parameter < end and not constant[parameter]:
                scales[chunk] = parameter
                continue
            for parameter, length in cut:
                if parameter < end and constant[parameter]:
                    begin = sum(self.runs)
                    constants.extend(range(begin, begin + length))
                segments.append(parameter if parameter < end else -1)
                self.runs.append(length)
        mixed = [chunk for chunk, parameter in enumerate(scales) if parameter < 0]
        found = {"scales": scales, "mixed": mixed, "segments": segments, "lengths": self.runs, "constants": constants}
        for name, values in found.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.long), persistent=False)
        width = -(-(mlp.head.in_features + 1) // ALIGNED) * ALIGNED  # h: the head's inputs, its bias, and zeros
        tail = torch.zeros(width - mlp.head.in_features)
        tail[0] = 1
        self.register_buffer("tail", tail, persistent=False)

    @property
    def mlp(self) -> ChunkMLP:
        return self.owned[0]

    @property
    def weight(self) -> Tensor:
        """W [S, h] of the head, with its bias in the column behind the H."""
        return torch.cat([self.mlp.head.weight, self.mlp.head.bias[:, None] * self.tail], 1)

    def saved(self, tasks: int) -> int:
        """The multiplications that factors of that many tasks need less than values do; negative where they need more."""
        mlp, uniform = self.mlp, self.mlp.chunks - len(self.mixed)
        if not uniform:
            return 0
        by_factors = (4 * mlp.chunk_size + 5 * tasks * mlp.chunks) * (mlp.head.in_features + len(self.tail)) ** 2
        return tasks * uniform * mlp.chunk_size * (3 * mlp.head.in_features + PASSES) - by_factors

    def common(self, scale: Tensor) -> Common:
        """What is the same for all tasks, with the scale of each parameter."""
        known = torch.cat([scale, scale.new_zeros(1)])  # -1 is the zero
        count, weight = len(self.mixed) * self.mlp.chunk_size, self.weight
        by_value = known[self.segments].repeat_interleave(self.lengths, output_size=count)
        return Common(weight, weight.T @ weight, known[self.scales][:, None], by_value)

    def by_task(self, features: Tensor, gain: Tensor, share: Tensor | None, common: Common) -> ByTask:
        """What differs from task to task.

        Args:
            features: of the MLP [B, C, H].
            gain: of all its constants.
            share: one factor for each of its parameters; None where all are 1.
            common: of the record to compare with.
        """
        by_chunk, by_value = common.by_chunk, common.by_value
        if share is not None:
            known = torch.cat([share, share.new_ones(1)])  # -1 is the one
            by_chunk = by_chunk * known[self.scales][:, None]
            runs = zip(by_value.split(self.runs), known[self.segments].unbind(), strict=True)
            by_value = torch.cat([by_value[:0], *(own * factor for own, factor in runs)])
        own = torch.cat([features, self.tail.expand(*features.shape[:2], -1)], -1) * by_chunk
        if len(gain):
            by_value = by_value.index_copy(0, self.constants, by_value.index_select(0, self.constants) * gain)
        mixed: Tensor = self.mlp.head(features.index_select(1, self.mixed)).flatten(1) * by_value
        return ByTask(own, mixed)


class DistanceByFactors(nn.Module):
    """Squared distances of what chunk MLPs generate, all in all, from what they generated before.

    Args:
        mlps: their outputs lie one behind the other.
        constant: for each parameter, in that order, whether it starts at constants.
    """

    def __init__(self, mlps: Sequence[ChunkMLP], constant: Sequence[bool]) -> None:
        super().__init__()
        left = iter(constant)
        self.of_mlps = nn.ModuleList(Chunks(mlp, [next(left) for _ in mlp.sizes]) for mlp in mlps)
        self.sizes = [len(mlp.sizes) for mlp in mlps]

    @property
    def chunks(self) -> list[Chunks]:
        """Of every MLP."""
        return [cast(Chunks, each) for each in self.of_mlps]

    def saves(self, tasks: int) -> bool:
        """Whether factors of that many tasks need less work than values do."""
        return sum(chunks.saved(tasks) for chunks in self.chunks) > 0

    def features(self, embeddings: Tensor) -> list[Tensor]:
        """Of every MLP: [B, E] -> [B, C, H]."""
        return [chunks.mlp.features(embeddings) for chunks in self.chunks]

    def record(self, features: Sequence[Tensor], scale: Tensor, gain: Tensor, share: Tensor | None) -> Record:
        """What is generated for B tasks.

        Args:
            features: of every MLP.
            scale: of every parameter.
            gain: of all constants.
            share: one factor for every parameter; None where all are 1.
        """
        common = [chunks.common(own) for chunks, own in zip(self.chunks, scale.split(self.sizes), strict=True)]
        by_task = self._by_task(features, gain, share, common)
        return Record([tensor for each in by_task for tensor in each], [tensor for each in common for tensor in each])

    def forward(self, features: Sequence[Tensor], gain: Tensor, share: Tensor | None, before: Record) -> Tensor:
        """Squared distances [B] of what is generated with these features from a record of the same tasks."""
        olds, common = _read(ByTask, before.by_task), _read(Common, before.common)
        news = self._by_task(features, gain, share, common)
        found = [
            _squared_distance(new, chunks.weight, old, same)
            for chunks, new, old, same in zip(self.chunks, news, olds, common, strict=True)
        ]
        return reduce(torch.add, found)

    def _by_task(
        self, features: Sequence[Tensor], gain: Tensor, share: Tensor | None, common: Sequence[Common]
    ) -> list[ByTask]:
        gains = gain.split([len(chunks.constants) for chunks in self.chunks])
        shares = [None] * len(gains) if share is None else share.split(self.sizes)
        operands = zip(self.chunks, features, gains, shares, common, strict=True)
        return [chunks.by_task(*own) for chunks, *own in operands]


def _squared_distance(new: ByTask, weight: Tensor, old: ByTask, common: Common) -> Tensor:
    """Squared distances [B] of what one MLP generates; no gradient flows to what is older."""
    found: Tensor = SquaredDistance.apply(new.features, weight, old.features, common.weight, common.gram)[0]
    return found + F.mse_loss(new.mixed, old.mixed, reduction="none").sum(1)
