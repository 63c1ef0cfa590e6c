"""The linear generator: every task's parameters are a mixture of a few networks that all tasks share."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from hnetcl.hnets.base import Shapes
from hnetcl.hnets.generators.generator import Generator
from hnetcl.registry import register


@register("hnet", "linear")
class Linear(Generator):
    r"""r_t = \sum_k e_{tk} b_k: E basis networks b_k [P], mixed by the task embedding.

    The simplest generator, and a large one: E trainable values for each that is generated. Tasks share what their embeddings
    have in common; with as many basis networks as tasks they need share nothing.

    Args:
        shapes, num_tasks: given by the run.
        embedding_dim: E, the basis networks.

    Source: Cheung et al. 2019 (arXiv:1902.05522) mix networks by fixed contexts; here both are learned.
    """

    def __init__(self, shapes: Shapes, num_tasks: int, *, embedding_dim: Annotated[int, Ge(1)] = 8) -> None:
        super().__init__(shapes, embedding_dim)
        self.basis = nn.Parameter(torch.randn(embedding_dim, sum(self.sizes)) / embedding_dim**0.5)
        self.returns_new_tensors = True

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings @ self.basis
