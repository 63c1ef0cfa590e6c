"""Generators that are MLPs and nothing else: full, chunked and structured."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from hnetcl.hnets.generators.chunk_mlp import ChunkMLP
from hnetcl.hnets.generators.generator import Generator
from hnetcl.hnets.scaling import MeasuredShapes

HeadScale = Literal["unit", "own"]


class EndToEnd(Generator):
    """The outputs of MLPs, laid end to end, are the raw outputs.

    Args:
        mlps: one after the other they generate all parameters.
        shapes: of the parameters, in any order.
        embedding_dim: E.
        head_scale: "unit", the heads yield values of unit variance, which the scales make as narrow as the network's
            weights; or "own", values as narrow as these, as in published code: a step of the optimizer then moves what is
            generated farther, by the inverse of that width.
        names: of the parameters in the order of the MLPs, where that is not the order of `shapes`.
        note: what a user should know of the chunk size.
    """

    def __init__(
        self,
        mlps: Sequence[ChunkMLP],
        shapes: MeasuredShapes,
        embedding_dim: int,
        head_scale: HeadScale,
        names: Sequence[str] | None = None,
        note: str = "",
    ) -> None:
        super().__init__({name: shapes[name] for name in names or shapes}, embedding_dim)
        self.note, self.returns_new_tensors = note, True
        self.mlps = nn.ModuleList(mlps)
        if head_scale == "own":
            self._scale_heads(shapes)

    @torch.no_grad()
    def _scale_heads(self, shapes: MeasuredShapes) -> None:
        """Makes each head's outputs as wide as the random parameters that it generates are on average."""
        left = iter(self.names)
        for mlp in self.chunk_mlps():
            own = [(size, name) for size, name in zip(mlp.sizes, left, strict=False) if name not in shapes.constant]
            if own:
                square = sum(size * shapes.widths[name] ** 2 for size, name in own) / sum(size for size, _ in own)
                mlp.head.weight *= square**0.5

    def forward(self, embeddings: Tensor) -> list[Tensor]:
        return [outputs for mlp in self.mlps for outputs in mlp(embeddings)]

    def mean_squares(self, embeddings: Tensor) -> Tensor:
        return torch.cat([mlp.mean_squares(embeddings) for mlp in self.chunk_mlps()], 1)

    def chunk_mlps(self) -> Sequence[ChunkMLP]:
        return [cast(ChunkMLP, mlp) for mlp in self.mlps]
