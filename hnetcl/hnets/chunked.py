"""The chunked hypernetwork: one small MLP writes the parameters piece by piece."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, cast

from annotated_types import Ge, Gt
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.hnets.base import Shapes
from hnetcl.hnets.compression import find_chunk_size
from hnetcl.hnets.part import Part, part_size
from hnetcl.hnets.parted import PartedHyperNetwork
from hnetcl.registry import register


@register("hnet", "chunked")
class ChunkedHyperNetwork(PartedHyperNetwork):
    """chunk_k = MLP([e_t, c_k]) for all chunks k in one batch; the chunks laid end to end are the parameters.

    Args:
        shapes, num_tasks, initial: as for every hypernetwork.
        hidden: widths of the MLP's hidden layers.
        embedding_dim: E, of task embeddings.
        chunk_embedding_dim: of the chunk embeddings c_k, which all tasks share.
        chunk_size: numbers in a chunk; give it or `compression`.
        compression: the wanted ratio of trainable to written numbers; the chunk size is then the largest that stays within it.
            0.95 where neither is given; where no chunk size comes to that, the one with the smallest ratio.
        activation: of the MLP, "relu" or "elu".
        head_scale: "unit" or "own", how wide the numbers of the MLP are, see `PartedHyperNetwork.assemble`.
        given: whether every task starts at `initial` exactly, see `ConditionedHyperNetwork`.

    Raises:
        ArgumentError: both sizes given, a size below 1, or a `compression` that no chunk size reaches.

    Source: von Oswald et al. 2020 (arXiv:1906.00695), section 2, "Compression".
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
        chunk_size: Annotated[int, Ge(1)] | None = None,
        compression: Annotated[float, Gt(0)] | None = None,
        activation: Literal["relu", "elu"] = "relu",
        head_scale: Literal["unit", "own"] = "unit",
    ) -> None:
        super().__init__(shapes, num_tasks, embedding_dim, initial, given)
        if chunk_embedding_dim < 1:
            raise ArgumentError("chunk_embedding_dim", chunk_embedding_dim, "must be at least 1")
        written, fixed = self.num_generated, self.num_trainable
        size, self.note = find_chunk_size(
            chunk_size,
            compression,
            written,
            written,
            lambda size: fixed + part_size(written, embedding_dim, hidden, size, chunk_embedding_dim),
        )
        sizes = [shape.numel() for shape in self.shapes.values()]
        self.assemble([Part(sizes, embedding_dim, hidden, size, chunk_embedding_dim, activation)], head_scale)

    @property
    def num_chunks(self) -> int:
        """C."""
        (part,) = self.parts
        return cast(Part, part).chunks
