"""Hypernetworks whose numbers come straight from parts."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from hnetcl.choices import HEAD_SCALES
from hnetcl.errors import one_of
from hnetcl.hnets.base import Record, Shapes
from hnetcl.hnets.conditioned import ConditionedHyperNetwork
from hnetcl.hnets.distance import Description, Ruler, compare
from hnetcl.hnets.part import Part


class PartedHyperNetwork(ConditionedHyperNetwork):
    """Parts write the parameters one after the other; squared distances are taken by factors where that is less work.

    Args:
        shapes, num_tasks, embedding_dim, initial: as for every hypernetwork with embeddings.
        given: whether all parameters are centered.
    """

    def __init__(
        self,
        shapes: Shapes,
        num_tasks: int,
        embedding_dim: int,
        initial: Mapping[str, Tensor] | None = None,
        given: bool = False,
    ) -> None:
        super().__init__(shapes, num_tasks, embedding_dim, initial, shapes if given else ())
        self.parts = nn.ModuleList()
        self.rulers = nn.ModuleList()

    def assemble(self, parts: Sequence[Part], head_scale: str, names: Sequence[str] | None = None) -> None:
        """Takes the parts and sets the scales.

        Args:
            parts: what they write lies one behind the other.
            head_scale: "unit", the heads yield numbers of unit variance, which the scales make as narrow as the network's
                weights; or "own", numbers as narrow as these, as in published code: a step of the optimizer then moves what is
                written farther, by the inverse of that width.
            names: of the parameters that they write, where the order is not that of `shapes`.

        Raises:
            ArgumentError: there is no such head_scale.
        """
        if head_scale not in HEAD_SCALES:
            raise one_of("head_scale", head_scale, HEAD_SCALES)
        self.parts.extend(parts)
        if head_scale == "own":
            self._scale_heads(parts, names or list(self.shapes))
        self.calibrate(names)
        constant = iter([self.constant[name] for name in self.names])
        self.rulers.extend(Ruler(part, [next(constant) for _ in part.sizes]) for part in parts)

    @torch.no_grad()
    def _scale_heads(self, parts: Sequence[Part], names: Sequence[str]) -> None:
        """Makes each head's numbers as wide as the random parameters that it writes are on average."""
        widths = dict(zip(self.shapes, self.scale.tolist(), strict=True))
        left = iter(names)
        for part in parts:
            own = [(size, name) for size, name in zip(part.sizes, left, strict=False) if not self.constant[name]]
            if own:
                square = sum(size * widths[name] ** 2 for size, name in own) / sum(size for size, _ in own)
                part.head.weight *= square**0.5

    def numbers(self, embeddings: Tensor) -> list[Tensor]:
        return [numbers for part in self.parts for numbers in part(embeddings)]

    def mean_squares(self, embeddings: Tensor) -> Tensor:
        return torch.cat([cast(Part, part).mean_squares(embeddings) for part in self.parts], 1)

    @torch.no_grad()
    def record(self, tasks: Tensor, at_once: int) -> Record:
        if sum(ruler.saves(part, at_once) for part, ruler in self._measured()) <= 0:
            return super().record(tasks, at_once)
        scales = self.scale.split([len(cast(Part, part).sizes) for part in self.parts])
        widths = [ruler.widths(part, scale) for (part, ruler), scale in zip(self._measured(), scales, strict=True)]
        found = self._describe(self._features(tasks), widths)
        by_task = [each for a, numbers, _ in found for each in (a, numbers)]
        common = [each for (*_, w), own in zip(found, widths, strict=True) for each in (w, w.T @ w, *own)]
        return Record(by_task, common)

    def squared_distance(self, tasks: Tensor, before: Record) -> Tensor:
        if not before.common:
            return super().squared_distance(tasks, before)
        return self._compared(self._features(tasks), before)

    def with_squared_distance(self, task: Tensor, tasks: Tensor, before: Record) -> tuple[dict[str, Tensor], Tensor]:
        if not before.common:
            return super().with_squared_distance(task, tasks, before)
        split = [each.split([1, len(tasks)]) for each in self._features(torch.cat([task.reshape(1), tasks]))]
        numbers = [r for (part, _), (own, _) in zip(self._measured(), split, strict=True) for r in part.write(own)]
        return self.shaped(self.scaled(numbers)), self._compared([others for _, others in split], before)

    def _compared(self, features: Sequence[Tensor], before: Record) -> Tensor:
        """Squared distances [B] of what is written with these features of all parts."""
        by_task, common = before.by_task, before.common
        found = self._describe(features, list(zip(common[2::4], common[3::4], strict=True)))
        olds = zip(by_task[::2], by_task[1::2], common[::4], strict=True)
        return reduce(torch.add, (compare(now, old, gram) for now, old, gram in zip(found, olds, common[1::4], strict=True)))

    def _measured(self) -> list[tuple[Part, Ruler]]:
        return [(cast(Part, part), cast(Ruler, ruler)) for part, ruler in zip(self.parts, self.rulers, strict=True)]

    def _features(self, tasks: Tensor) -> list[Tensor]:
        """[B, C, H] of every part."""
        embeddings = self.embedding.index_select(0, tasks)
        return [part.features(embeddings) for part, _ in self._measured()]

    def _describe(self, features: Sequence[Tensor], widths: Sequence[tuple[Tensor, Tensor]]) -> list[Description]:
        measured = self._measured()
        gains = self.gain.split([len(ruler.constants) for _, ruler in measured])
        shares: Sequence[Tensor | None] = [None] * len(measured)
        if self.share is not None:
            own, one = self.shares(), self.scale.new_ones(())
            by_name = torch.stack([own.get(name, one) for name in self.names])
            shares = by_name.split([len(part.sizes) for part, _ in measured])
        return [
            ruler.describe(part, seen, gain, share, *width)
            for (part, ruler), seen, gain, share, width in zip(measured, features, gains, shares, widths, strict=True)
        ]
