"""What every generator is: a module from task embeddings to raw outputs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from hnetcl.errors import ArgumentError
from hnetcl.hnets.base import Shapes
from hnetcl.hnets.generators.chunk_mlp import AT_ONCE, ChunkMLP

Outputs = Tensor | Sequence[Tensor]
"""Raw outputs of B tasks: [B, P], or [B, n] for every parameter."""


class Generator(nn.Module, ABC):
    """Task embeddings [B, E] -> raw outputs [B, P], in the order of the shapes, or a list of tensors [B, n], one a parameter.

    A plain module with such a `forward` and an attribute `embedding_dim` is a generator as well. This class is for those that
    can say more; all of it has a default.

        @register("hnet", "affine")
        class Affine(Generator):
            def __init__(self, shapes, num_tasks, *, embedding_dim: Annotated[int, Ge(1)] = 32) -> None:
                super().__init__(shapes, embedding_dim)
                self.linear = nn.Linear(embedding_dim, sum(self.sizes))

            def forward(self, embeddings):
                return self.linear(embeddings)

    Args:
        shapes: name -> shape of the parameters to generate, given by the run.
        embedding_dim: E.

    Attributes:
        names: of the parameters, in the order of the raw outputs: that of `shapes`, unless a generator changes it.
        sizes: of their raw outputs, in the same order.
        note: what a user should know of a size that was chosen here; empty where there is nothing.
        trained_centers: names of parameters whose center is trained. For every task they start at the network's own values,
            which all tasks share and change.
        returns_new_tensors: whether nothing else uses the memory of the raw outputs. Without a graph they are then scaled in
            place.

    Raises:
        ArgumentError: `embedding_dim` is below 1; later, the raw outputs are of other shapes.
    """

    def __init__(self, shapes: Shapes, embedding_dim: int) -> None:
        super().__init__()
        if embedding_dim < 1:
            raise ArgumentError("embedding_dim", embedding_dim, "must be at least 1")
        self.names = list(shapes)
        self.sizes = [prod(shape) for shape in shapes.values()]
        self.embedding_dim = embedding_dim
        self.note, self.label = "", type(self).__name__
        self.trained_centers: list[str] = []
        self.returns_new_tensors = False

    @abstractmethod
    def forward(self, embeddings: Tensor) -> Outputs:
        """Raw outputs: [B, E] -> [B, P], or [B, n] each."""

    def mean_squares(self, embeddings: Tensor) -> Tensor:
        """The mean of the squared raw outputs of every parameter: [B, E] -> [B, parameters]. Scales are measured with it."""
        self._check(self(embeddings[:2]))
        squares = [torch.stack([r.square().sum(1) for r in self.by_parameter(few)], 1) for few in embeddings.split(AT_ONCE)]
        return torch.cat(squares) / torch.tensor(self.sizes, device=embeddings.device).clamp_min(1)

    def chunk_mlps(self) -> Sequence[ChunkMLP]:
        """Those whose outputs, one behind the other, are the raw outputs: distances are then taken by their factors, which is
        less work. None where the raw outputs come from anything else.
        """
        return ()

    def by_parameter(self, embeddings: Tensor) -> Sequence[Tensor]:
        """Raw outputs [B, n] of every parameter, in the order of `names`."""
        outputs: Outputs = self(embeddings)
        return outputs.split(self.sizes, 1) if isinstance(outputs, Tensor) else outputs

    def _check(self, outputs: Outputs) -> None:
        found = [tuple(r.shape[1:]) for r in ([outputs] if isinstance(outputs, Tensor) else outputs)]
        if found not in ([(sum(self.sizes),)], [(size,) for size in self.sizes]):
            shown = ", ".join(f"[B, {', '.join(map(str, shape))}]" for shape in found)
            rule = f"yields {shown}; must yield [B, {sum(self.sizes)}], or [B, n] with n = {', '.join(map(str, self.sizes))}"
            raise ArgumentError("generator", self.label, rule)


class PlainGenerator(Generator):
    """Any module as a generator.

    Args:
        module: with `forward`, [B, E] -> [B, P] or a list of [B, n], and `embedding_dim`.
        shapes: given by the run.

    Raises:
        ArgumentError: it has no `embedding_dim`.
    """

    def __init__(self, module: nn.Module, shapes: Shapes) -> None:
        width = getattr(module, "embedding_dim", None)
        if not isinstance(width, int):
            rule = "must have the width of task embeddings as an attribute embedding_dim"
            raise ArgumentError("generator", type(module).__name__, rule)
        super().__init__(shapes, width)
        self.module, self.label = module, type(module).__name__

    def forward(self, embeddings: Tensor) -> Outputs:
        outputs: Outputs = self.module(embeddings)
        return outputs
