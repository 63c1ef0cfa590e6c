"""The chunked hypernetwork: one small MLP writes the parameters piece by piece."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import cast

from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.hnets.base import Shapes
from hnetcl.hnets.conditioned import ConditionedHyperNetwork
from hnetcl.hnets.part import Part, part_size

DEFAULT_COMPRESSION = 0.95


class ChunkedHyperNetwork(ConditionedHyperNetwork):
    """chunk_k = MLP([e_t, c_k]) for all chunks k in one batch; the chunks laid end to end are the parameters.

    Args:
        shapes, num_tasks, initial: as for every hypernetwork.
        hidden: widths of the MLP's hidden layers.
        embedding_dim: E, of task embeddings.
        chunk_embedding_dim: of the chunk embeddings c_k, which all tasks share.
        chunk_size: numbers in a chunk; give it or `compression`.
        compression: the wanted ratio of trainable to written numbers; the chunk size is then the largest that stays within it.
            0.95 where neither is given.

    Raises:
        ArgumentError: both sizes given, a size below 1, or a ratio that no chunk size reaches.

    Source: von Oswald et al. 2020 (arXiv:1906.00695), section 2, "Compression".
    """

    def __init__(
        self,
        shapes: Shapes,
        num_tasks: int,
        hidden: Sequence[int] = (10, 10),
        embedding_dim: int = 32,
        chunk_embedding_dim: int = 32,
        chunk_size: int | None = None,
        compression: float | None = None,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(shapes, num_tasks, embedding_dim, initial)
        if chunk_embedding_dim < 1:
            raise ArgumentError("chunk_embedding_dim", chunk_embedding_dim, "must be at least 1")
        if chunk_size is not None and compression is not None:
            raise ArgumentError("chunk_size", chunk_size, f"can't be given beside compression={compression}")
        if chunk_size is not None and chunk_size < 1:
            raise ArgumentError("chunk_size", chunk_size, "must be at least 1")
        if chunk_size is None:
            trunk, per_output = part_size(embedding_dim, hidden, chunk_embedding_dim)
            fixed = trunk + sum(p.numel() for p in self.parameters())
            wanted = DEFAULT_COMPRESSION if compression is None else compression
            chunk_size = self._solve(wanted, fixed, chunk_embedding_dim, per_output)
        sizes = [shape.numel() for shape in self.shapes.values()]
        self.assemble([Part(sizes, embedding_dim, hidden, min(chunk_size, self.num_generated), chunk_embedding_dim)])

    @property
    def num_chunks(self) -> int:
        """C."""
        (part,) = self.parts
        return cast(Part, part).chunks

    def _solve(self, compression: float, fixed: int, per_chunk: int, per_output: int) -> int:
        """The largest chunk size whose trainable numbers, fixed + chunks * per_chunk + size * per_output, are few enough."""
        written = self.num_generated
        best = float("inf")
        for chunks in range(1, written + 1):
            size = ceil(written / chunks)
            ratio = (fixed + chunks * per_chunk + size * per_output) / written
            if ratio <= compression:
                return size
            best = min(best, ratio)
            if fixed + chunks * per_chunk > compression * written:
                break
        raise ArgumentError(
            "compression",
            compression,
            f"the smallest ratio that a chunk size reaches is {best:.3f} (less with smaller hidden layers or embeddings)",
        )
