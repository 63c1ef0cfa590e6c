"""Hypernetworks that write from a learned task embedding."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from hnetcl.errors import ArgumentError
from hnetcl.hnets.base import HyperNetwork, Record, Shapes, initial_values
from hnetcl.hnets.distance import Description, Ruler, compare
from hnetcl.hnets.part import Part

VIRTUAL_TASKS = 16  # over which the variance of what is written is measured


class ConditionedHyperNetwork(HyperNetwork):
    """Task embeddings and the last step of writing, shared by all members that have embeddings.

    A member has parts, which yield numbers r. What is written is

        scale * r             for a parameter that its network draws at random: one scale for each parameter, with which it has,
                              over tasks and before training, the variance of that draw;
        initial + gain * r    for one that its network starts at constants (norm layers, biases), so that it starts there
                              exactly: gain is learned from zero, one for each number (as in ReZero, Bachlechner et al. 2021).

    The first is the aim of HyperFan initialisation (Chang et al. 2020, Principled weight initialization for hypernetworks), for
    every layer, and for chunks that cut layers anywhere. Fan-in or fan-out is what the network's own draw is.

    Args:
        embedding_dim: E, the width of a task embedding; embeddings start at N(0, I).
    """

    start: Tensor
    scale: Tensor

    def __init__(self, shapes: Shapes, num_tasks: int, embedding_dim: int, initial: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(shapes, num_tasks, initial)
        if embedding_dim < 1:
            raise ArgumentError("embedding_dim", embedding_dim, "must be at least 1")
        values = initial_values(self.shapes) if initial is None else initial
        flat = [values[name].detach().float().flatten() for name in self.shapes]
        self.constant = [len(value.unique()) <= 2 for value in flat]  # gamma of a d-component norm starts at two values
        pairs = list(zip(flat, self.constant, strict=True))
        self.register_buffer("start", torch.cat([torch.zeros(0), *(value for value, constant in pairs if constant)]))
        self.register_buffer("scale", torch.stack([torch.ones(()) if constant else value.std() for value, constant in pairs]))
        self.gain = nn.Parameter(torch.zeros_like(self.start))
        self.embedding = nn.Parameter(torch.randn(num_tasks, embedding_dim))
        self.parts = nn.ModuleList()
        self.rulers = nn.ModuleList()

    @property
    def embeddings(self) -> Tensor:
        return self.embedding

    def task_parameters(self) -> list[nn.Parameter]:
        return [self.embedding]

    def add_task(self) -> None:
        fresh = torch.randn_like(self.embedding[:1])
        self.embedding = nn.Parameter(torch.cat([self.embedding.detach(), fresh]))
        self.num_tasks += 1

    def assemble(self, parts: Sequence[Part]) -> None:
        """Takes the parts, which write the parameters one after the other, and sets the scales."""
        self.parts.extend(parts)
        constant = iter(self.constant)
        self.rulers.extend(Ruler(part, [next(constant) for _ in part.sizes]) for part in parts)
        with torch.no_grad():
            embeddings = torch.randn(VIRTUAL_TASKS, 1, self.embedding.shape[1])
            squares = [torch.stack([r.square().mean() for r in self.numbers(each)]) for each in embeddings]
            self.scale /= torch.stack(squares).mean(0).sqrt()

    def numbers(self, embeddings: Tensor) -> list[Tensor]:
        """r of every parameter: [B, E] -> [B, n] each, in the order of `shapes`."""
        return [numbers for part in self.parts for numbers in part(embeddings)]

    def written(self, tasks: Tensor) -> dict[str, Tensor]:
        numbers = self.numbers(self.embedding.index_select(0, tasks))
        sizes = [r.shape[1] for r, constant in zip(numbers, self.constant, strict=True) if constant]
        starts = zip(self.start.split(sizes), self.gain.split(sizes), strict=True)
        return {
            name: torch.addcmul(*next(starts), r) if constant else r * scale
            for name, r, scale, constant in zip(self.shapes, numbers, self.scale.unbind(), self.constant, strict=True)
        }

    @torch.no_grad()
    def record(self, tasks: Tensor, at_once: int) -> Record:
        if not all(ruler.pays(part, at_once) for part, ruler in self._measured()):
            return super().record(tasks, at_once)
        found = self._describe(tasks)
        return Record(
            [each for a, numbers, _ in found for each in (a, numbers)], [each for *_, w in found for each in (w, w.T @ w)]
        )

    def squared_distance(self, tasks: Tensor, before: Record) -> Tensor:
        if not before.common:
            return super().squared_distance(tasks, before)
        by_task, common = iter(before.by_task), iter(before.common)
        far = [compare(now, (next(by_task), next(by_task), next(common)), next(common)) for now in self._describe(tasks)]
        return reduce(torch.add, far)

    def _measured(self) -> list[tuple[Part, Ruler]]:
        return [(cast(Part, part), cast(Ruler, ruler)) for part, ruler in zip(self.parts, self.rulers, strict=True)]

    def _describe(self, tasks: Tensor) -> list[Description]:
        measured, embeddings = self._measured(), self.embedding.index_select(0, tasks)
        scales = self.scale.split([len(part.sizes) for part, _ in measured])
        gains = self.gain.split([len(ruler.constants) for _, ruler in measured])
        return [
            ruler.describe(part, embeddings, scale, gain)
            for (part, ruler), scale, gain in zip(measured, scales, gains, strict=True)
        ]
