"""The low-rank generator: two thin factors in place of each matrix."""

from collections.abc import Sequence
from math import prod
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from hnetcl.hnets.base import Shapes
from hnetcl.hnets.generators.chunk_mlp import AT_ONCE, Activation, ChunkMLP, chunk_mlp_size
from hnetcl.hnets.generators.generator import Generator
from hnetcl.hnets.scaling import measured_shapes
from hnetcl.hnets.sizing import DEFAULT_COMPRESSION, find_chunk_size
from hnetcl.registry import register


@register("hnet", "low_rank")
class LowRank(Generator):
    r"""U_t V_t with U_t [n, r] and V_t [r, m], which one chunked MLP generates.

    A weight of any shape is the matrix [n, m] whose factors are smallest, its leading axes against its trailing ones:
    for a convolution [out, in, k, k] that is out against in k k. Vectors, what the network starts at constants, and matrices no
    larger than their factors are generated as they are. The product has the variance of the network's draw.

    With `base` a matrix is

    .. math:: W_t = W + \gamma U_t V_t

    with W [n, m] shared by the tasks and trained, from the network's own values on, and gamma, one for each matrix, from zero:
    every task starts at the network's own values, and with gamma = 1 the change is as wide as they are. With `given` and
    without `base` it is the same with a W that stays as it is.

    Args:
        shapes, num_tasks: given by the run.
        hidden, embedding_dim, chunk_embedding_dim, chunk_size: of the MLP that generates the factors, as in the chunked
            generator.
        rank: r.
        base: whether there is a base.
        compression: the wanted ratio of trainable values, the base included, to those of the network; the chunk size is then
            the largest that stays within it. Where neither is given 0.95, with a base 1.95; where no chunk size comes to that,
            the one with the smallest ratio.
        activation: of the MLP, "relu" or "elu".

    Raises:
        ArgumentError: both sizes given, or a `compression` that no chunk size reaches.

    Source: Hu et al. 2022 (arXiv:2106.09685) for a change of low rank.
    """

    def __init__(
        self,
        shapes: Shapes,
        num_tasks: int,
        *,
        hidden: Sequence[Annotated[int, Ge(1)]] = (10, 10),
        embedding_dim: Annotated[int, Ge(1)] = 32,
        chunk_embedding_dim: Annotated[int, Ge(1)] = 32,
        rank: Annotated[int, Ge(1)] = 8,
        base: bool = False,
        chunk_size: Annotated[int, Ge(1)] | None = None,
        compression: Annotated[float, Gt(0)] | None = None,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(shapes, embedding_dim)
        shapes = measured_shapes(shapes)
        self.rank, self.returns_new_tensors = rank, True
        cuts = {name: as_matrix(shape) for name, shape in shapes.items() if name not in shapes.constant}
        self.matrices = {name: cut for name, cut in cuts.items() if rank * sum(cut) < prod(cut)}
        fixed = shapes.num_trained + num_tasks * embedding_dim
        if base:
            self.trained_centers = list(self.matrices)
            fixed += sum(shapes[name].numel() + (name not in shapes.centered) for name in self.matrices)  # W, and gamma
        sizes = []
        for name, shape in shapes.items():
            sizes += [rank * width for width in self.matrices[name]] if name in self.matrices else [shape.numel()]
        size, self.note = find_chunk_size(
            chunk_size,
            compression,
            sum(sizes),
            shapes.num_generated,
            lambda size: fixed + chunk_mlp_size(sum(sizes), embedding_dim, hidden, size, chunk_embedding_dim),
            DEFAULT_COMPRESSION + base,
        )
        self.mlp = ChunkMLP(sizes, embedding_dim, hidden, size, chunk_embedding_dim, activation)

    def factors(self, embeddings: Tensor) -> list[tuple[Tensor, ...]]:
        """Of every parameter: [B, E] -> U [B, n, r] and V [B, r, m], or all of its values [B, n]."""
        found: list[tuple[Tensor, ...]] = []
        pieces = iter(self.mlp(embeddings))
        for name in self.names:
            if name in self.matrices:
                n, m = self.matrices[name]
                found.append((next(pieces).unflatten(1, (n, self.rank)), next(pieces).unflatten(1, (self.rank, m))))
            else:
                found.append((next(pieces),))
        return found

    def forward(self, embeddings: Tensor) -> list[Tensor]:
        return [(each[0] @ each[1]).flatten(1) if len(each) == 2 else each[0] for each in self.factors(embeddings)]

    def mean_squares(self, embeddings: Tensor) -> Tensor:
        squares = [torch.stack([_squared_norm(*each) for each in self.factors(few)], 1) for few in embeddings.split(AT_ONCE)]
        return torch.cat(squares) / torch.tensor(self.sizes, device=embeddings.device).clamp_min(1)


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width, leading axes against trailing ones, of the matrix whose factors need the fewest values."""
    cuts = [(prod(shape[:k]), prod(shape[k:])) for k in range(1, max(2, len(shape)))]
    return min(cuts, key=sum)


def _squared_norm(left: Tensor, right: Tensor | None = None) -> Tensor:
    """|U V|^2 [B] of factors, which is the inner product of U^T U and V V^T; of values [B, n], their squared norm."""
    return left.square().sum(1) if right is None else (left.mT @ left * (right @ right.mT)).sum((1, 2))
