"""The low-rank hypernetwork: it writes two thin factors in place of each matrix."""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from hnetcl.errors import ArgumentError
from hnetcl.hnets.base import Shapes, initial_values
from hnetcl.hnets.compression import DEFAULT_COMPRESSION, find_chunk_size
from hnetcl.hnets.conditioned import ConditionedHyperNetwork
from hnetcl.hnets.part import AT_ONCE, Part, part_size


class LowRankHyperNetwork(ConditionedHyperNetwork):
    r"""W_t = U_t V_t with U_t [n, r] and V_t [r, m], which one chunked MLP writes.

    A weight of any shape is the matrix [n, m] whose factors are smallest, its leading axes against its trailing ones:
    for a convolution [out, in, k, k] that is out against in k k. Vectors, what the network starts at constants, and matrices no
    larger than their factors are written as they are. The product has the variance of the network's draw.

    With `base` a matrix is

    .. math:: W_t = W + \gamma U_t V_t

    with W [n, m] shared by the tasks and trained, from the network's own values on, and gamma, one for each matrix, from zero:
    every task starts at the network's own values, and with gamma = 1 the change is as wide as they are.

    Args:
        shapes, num_tasks, initial: as for every hypernetwork.
        hidden, embedding_dim, chunk_embedding_dim, chunk_size: of the MLP that writes the factors, as in the chunked
            hypernetwork.
        rank: r.
        base: whether there is a base.
        compression: the wanted ratio of trainable numbers, the base included, to those of the network; the chunk size is then
            the largest that stays within it. Where neither is given 0.95, with a base 1.95.
        activation: of the MLP, "relu" or "elu".

    Raises:
        ArgumentError: a rank below 1, both sizes given, a size below 1, or a ratio that no chunk size reaches.

    Source: Hu et al. 2022 (arXiv:2106.09685) for a change of low rank.
    """

    def __init__(
        self,
        shapes: Shapes,
        num_tasks: int,
        hidden: Sequence[int] = (10, 10),
        embedding_dim: int = 32,
        chunk_embedding_dim: int = 32,
        rank: int = 8,
        base: bool = False,
        chunk_size: int | None = None,
        compression: float | None = None,
        activation: str = "relu",
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        values = initial_values({name: torch.Size(shape) for name, shape in shapes.items()}) if initial is None else initial
        super().__init__(shapes, num_tasks, embedding_dim, values)
        for key, value in (("chunk_embedding_dim", chunk_embedding_dim), ("rank", rank)):
            if value < 1:
                raise ArgumentError(key, value, "must be at least 1")
        self.rank, cuts = rank, {name: as_matrix(shape) for name, shape in self.shapes.items()}
        self.matrices = {n: c for n, c in cuts.items() if not self.constant[n] and rank * sum(c) < prod(c)}
        own = [values[name].detach().float().flatten() for name in self.matrices]
        self.base = nn.Parameter(torch.cat([torch.zeros(0), *own])) if base else None
        self.share = nn.Parameter(torch.zeros(len(own))) if base else None
        sizes = []
        for name, shape in self.shapes.items():
            sizes += [rank * width for width in self.matrices[name]] if name in self.matrices else [shape.numel()]
        if base and chunk_size is None and compression is None:
            compression = 1 + DEFAULT_COMPRESSION
        fixed = self.num_trainable
        size = find_chunk_size(
            chunk_size,
            compression,
            sum(sizes),
            self.num_generated,
            lambda size: fixed + part_size(sum(sizes), embedding_dim, hidden, size, chunk_embedding_dim),
        )
        self.part = Part(sizes, embedding_dim, hidden, size, chunk_embedding_dim, activation)
        self.calibrate()

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
        return torch.cat(squares) / torch.tensor([self.shapes[name].numel() for name in self.names], device=embeddings.device)

    def varying(self) -> list[int]:
        return [i for i in super().varying() if self.base is None or self.names[i] not in self.matrices]

    def written(self, tasks: Tensor) -> dict[str, Tensor]:
        written = super().written(tasks)
        if self.base is not None and self.share is not None:
            own = self.base.split([n * m for n, m in self.matrices.values()])
            for name, base, share in zip(self.matrices, own, self.share.unbind(), strict=True):
                written[name] = torch.addcmul(base, share, written[name])
        return written


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns, leading axes against trailing ones, of the matrix whose factors need the fewest numbers."""
    cuts = [(prod(shape[:k]), prod(shape[k:])) for k in range(1, max(2, len(shape)))]
    return min(cuts, key=sum)


def _squared_norm(left: Tensor, right: Tensor | None = None) -> Tensor:
    """|U V|^2 [B] of factors, which is the inner product of U^T U and V V^T; of numbers, that of them."""
    return left.square().sum(1) if right is None else (left.mT @ left * (right @ right.mT)).sum((1, 2))
