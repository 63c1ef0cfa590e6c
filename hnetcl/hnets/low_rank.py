"""The low-rank hypernetwork: it writes two thin factors in place of each matrix."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from hnetcl.errors import ArgumentError
from hnetcl.hnets.base import Shapes
from hnetcl.hnets.compression import DEFAULT_COMPRESSION, find_chunk_size
from hnetcl.hnets.conditioned import ConditionedHyperNetwork
from hnetcl.hnets.part import AT_ONCE, Part, part_size
from hnetcl.registry import register


@register("hnet", "low_rank")
class LowRankHyperNetwork(ConditionedHyperNetwork):
    r"""W_t = U_t V_t with U_t [n, r] and V_t [r, m], which one chunked MLP writes.

    A weight of any shape is the matrix [n, m] whose factors are smallest, its leading axes against its trailing ones:
    for a convolution [out, in, k, k] that is out against in k k. Vectors, what the network starts at constants, and matrices no
    larger than their factors are written as they are. The product has the variance of the network's draw.

    With `base` a matrix is

    .. math:: W_t = W + \gamma U_t V_t

    with W [n, m] shared by the tasks and trained, from the network's own values on, and gamma, one for each matrix, from zero:
    every task starts at the network's own values, and with gamma = 1 the change is as wide as they are. With `given` and
    without `base` it is the same with a W that stays as it is.

    Args:
        shapes, num_tasks, initial: as for every hypernetwork.
        hidden, embedding_dim, chunk_embedding_dim, chunk_size: of the MLP that writes the factors, as in the chunked
            hypernetwork.
        rank: r.
        base: whether there is a base.
        compression: the wanted ratio of trainable numbers, the base included, to those of the network; the chunk size is then
            the largest that stays within it. Where neither is given 0.95, with a base 1.95; where no chunk size comes to that,
            the one with the smallest ratio.
        activation: of the MLP, "relu" or "elu".
        given: whether every task starts at `initial` exactly, see `ConditionedHyperNetwork`.

    Raises:
        ArgumentError: a rank below 1, both sizes given, a size below 1, or a `compression` that no chunk size reaches.

    Source: Hu et al. 2022 (arXiv:2106.09685) for a change of low rank.
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
        rank: Annotated[int, Ge(1)] = 8,
        base: bool = False,
        chunk_size: Annotated[int, Ge(1)] | None = None,
        compression: Annotated[float, Gt(0)] | None = None,
        activation: Literal["relu", "elu"] = "relu",
    ) -> None:
        cuts = {name: as_matrix(shape) for name, shape in shapes.items()}
        thin = {name: cut for name, cut in cuts.items() if rank * sum(cut) < prod(cut)}
        super().__init__(shapes, num_tasks, embedding_dim, initial, shapes if given else thin if base else ())
        for key, value in (("chunk_embedding_dim", chunk_embedding_dim), ("rank", rank)):
            if value < 1:
                raise ArgumentError(key, value, "must be at least 1")
        self.rank = rank
        self.matrices = {name: cut for name, cut in thin.items() if not self.constant[name]}
        self.base: nn.Parameter | None = None
        if base:
            self._free_matrices()
        sizes = []
        for name, shape in self.shapes.items():
            sizes += [rank * width for width in self.matrices[name]] if name in self.matrices else [shape.numel()]
        fixed = self.num_trainable
        size, self.note = find_chunk_size(
            chunk_size,
            compression,
            sum(sizes),
            self.num_generated,
            lambda size: fixed + part_size(sum(sizes), embedding_dim, hidden, size, chunk_embedding_dim),
            DEFAULT_COMPRESSION + base,
        )
        self.part = Part(sizes, embedding_dim, hidden, size, chunk_embedding_dim, activation)
        self.calibrate()

    def _free_matrices(self) -> None:
        """Makes the centers of the matrices a parameter, the base."""
        centers = self.centers()
        own = [centers.pop(name) for name in self.matrices]
        self.base = nn.Parameter(torch.cat([torch.zeros(0), *own]))
        self.center = torch.cat(list(centers.values())) if centers else None

    def centers(self) -> dict[str, Tensor]:
        if self.base is None:
            return super().centers()
        others = [name for name in self.centered if name not in self.matrices]
        found = {} if self.center is None else self._by_name(self.center, others)
        return {**found, **self._by_name(self.base, list(self.matrices))}

    def factors(self, embeddings: Tensor) -> list[tuple[Tensor, ...]]:
        """Of every parameter: [B, E] -> U [B, n, r] and V [B, r, m], or all of its numbers [B, n]."""
        found: list[tuple[Tensor, ...]] = []
        pieces = iter(self.part(embeddings))
        for name in self.names:
            if name in self.matrices:
                n, m = self.matrices[name]
                found.append((next(pieces).unflatten(1, (n, self.rank)), next(pieces).unflatten(1, (self.rank, m))))
            else:
                found.append((next(pieces),))
        return found

    def numbers(self, embeddings: Tensor) -> list[Tensor]:
        return [(each[0] @ each[1]).flatten(1) if len(each) == 2 else each[0] for each in self.factors(embeddings)]

    def mean_squares(self, embeddings: Tensor) -> Tensor:
        squares = [torch.stack([_squared_norm(*each) for each in self.factors(few)], 1) for few in embeddings.split(AT_ONCE)]
        sizes = torch.tensor([self.shapes[name].numel() for name in self.names], device=embeddings.device)
        return torch.cat(squares) / sizes.clamp_min(1)


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns, leading axes against trailing ones, of the matrix whose factors need the fewest numbers."""
    cuts = [(prod(shape[:k]), prod(shape[k:])) for k in range(1, max(2, len(shape)))]
    return min(cuts, key=sum)


def _squared_norm(left: Tensor, right: Tensor | None = None) -> Tensor:
    """|U V|^2 [B] of factors, which is the inner product of U^T U and V V^T; of numbers, that of them."""
    return left.square().sum(1) if right is None else (left.mT @ left * (right @ right.mT)).sum((1, 2))
