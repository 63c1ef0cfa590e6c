"""The structured hypernetwork: layers of one shape are written by one head, layer by layer."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from math import ceil, isqrt
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.hnets.base import Shapes
from hnetcl.hnets.compression import find_chunk_size
from hnetcl.hnets.part import Part, part_size
from hnetcl.hnets.parted import PartedHyperNetwork
from hnetcl.registry import register

Groups = Sequence[Sequence[str] | str]


@register("hnet", "structured")
class StructuredHyperNetwork(PartedHyperNetwork):
    """layer_l = MLP_g([e_t, c_l]) for all layers l of a group g: the same shape, one MLP, one chunk embedding c_l per layer.

    A layer of more than `chunk_size` numbers is several chunks: as few as possible of equal size, so that none holds numbers of
    two layers. (Where its size has no divisor between half of `chunk_size` and `chunk_size`, the group's layers are laid end
    to end and cut anywhere.) What no group takes is written together, by one chunked MLP; so are vectors and what the network
    starts at constants, as biases and norm layers are.

        hnet = StructuredHyperNetwork(shapes, num_tasks=5, groups=[["layer*.conv*.weight"], "fc.weight"])

    Args:
        shapes, num_tasks, initial: as for every hypernetwork.
        hidden, embedding_dim: of each MLP; one task embedding serves all.
        chunk_embedding_dim: of the embeddings c_l, which all tasks share.
        groups: each one name pattern (as in a shell) or several; a parameter belongs to the first that matches it, and those
            of a group that have the same shape share an MLP. None is one group of all parameters.
        chunk_size: most numbers in a chunk; give it or `compression`.
        compression: the wanted ratio of trainable to written numbers; the chunk size is then the largest that stays within it.
            0.95 where neither is given; where no chunk size comes to that, the one with the smallest ratio.
        activation: of the MLP, "relu" or "elu".
        head_scale: "unit" or "own", how wide the numbers of the MLP are, see `PartedHyperNetwork.assemble`.
        given: whether every task starts at `initial` exactly, see `ConditionedHyperNetwork`.

    Raises:
        ArgumentError: a pattern that no name matches, both sizes given, a size below 1, or a `compression` that no chunk size
            reaches.

    Sources: StructuredHMLP of hypnettorch; Savarese & Maire 2019 (arXiv:1902.09701), layers that share templates.
    """

    def __init__(
        self,
        shapes: Shapes,
        num_tasks: int,
        initial: Mapping[str, Tensor] | None = None,
        given: bool = False,
        *,
        hidden: Sequence[Annotated[int, Ge(1)]] = (10, 10),
        embedding_dim: Annotated[int, Ge(1)] = 32,
        chunk_embedding_dim: Annotated[int, Ge(1)] = 32,
        groups: Sequence[Sequence[str] | str] | None = None,
        chunk_size: Annotated[int, Ge(1)] | None = None,
        compression: Annotated[float, Gt(0)] | None = None,
        activation: Literal["relu", "elu"] = "relu",
        head_scale: Literal["unit", "own"] = "unit",
    ) -> None:
        super().__init__(shapes, num_tasks, embedding_dim, initial, given)
        if chunk_embedding_dim < 1:
            raise ArgumentError("chunk_embedding_dim", chunk_embedding_dim, "must be at least 1")
        layers = [name for name, shape in self.shapes.items() if len(shape) > 1 and not self.constant[name]]
        alike = group_alike(self.shapes, layers, groups)
        taken = {name for names in alike for name in names}
        rest = [name for name in self.shapes if name not in taken]
        if not any(self.shapes[name].numel() for name in rest):  # nothing, or parameters without numbers: they need no MLP
            alike[-1] += rest
            rest = []
        self.groups = [*alike, rest] if rest else alike
        sizes = [[self.shapes[name].numel() for name in names] for names in self.groups]
        units = [own[0] for own in sizes]  # what is cut into chunks: a layer, or the rest as a whole
        if rest:
            units[-1] = sum(sizes[-1])

        def trainable(size: int) -> int:
            return fixed + sum(
                part_size(sum(own), embedding_dim, hidden, piece(unit, size), chunk_embedding_dim)
                for own, unit in zip(sizes, units, strict=True)
            )

        fixed = self.num_trainable
        size, self.note = find_chunk_size(chunk_size, compression, max(units), self.num_generated, trainable)
        parts = [
            Part(own, embedding_dim, hidden, piece(unit, size), chunk_embedding_dim, activation)
            for own, unit in zip(sizes, units, strict=True)
        ]
        self.assemble(parts, head_scale, [name for names in self.groups for name in names])


def group_alike(shapes: Mapping[str, torch.Size], layers: Sequence[str], groups: Groups | None) -> list[list[str]]:
    """Names of those layers that a group matches, by group and by shape, in the order of `shapes`.

    Raises:
        ArgumentError: a pattern matches no name of `shapes`.
    """
    patterns = [["*"]] if groups is None else [[each] if isinstance(each, str) else list(each) for each in groups]
    for pattern in (pattern for group in patterns for pattern in group):
        if not any(fnmatchcase(name, pattern) for name in shapes):
            raise ArgumentError("groups", patterns, f"{pattern!r} matches none of {', '.join(shapes)}")
    found: dict[tuple[int, torch.Size], list[str]] = {}
    for name in layers:
        matching = (i for i, group in enumerate(patterns) if any(fnmatchcase(name, pattern) for pattern in group))
        first = next(matching, None)
        if first is not None:
            found.setdefault((first, shapes[name]), []).append(name)
    return list(found.values())


def piece(numbers: int, most: int) -> int:
    """The chunk size for layers of so many numbers."""
    if numbers <= most:
        return numbers
    equal = [size for size in divisors(numbers) if most / 2 < size <= most]
    return equal[-1] if equal else ceil(numbers / ceil(numbers / most))


@lru_cache
def divisors(number: int) -> list[int]:
    """In order."""
    low = [k for k in range(1, isqrt(number) + 1) if number % k == 0]
    return sorted({*low, *(number // k for k in low)})
