"""The full hypernetwork: one MLP from the task embedding to all parameters at once."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from hnetcl.hnets.base import Shapes
from hnetcl.hnets.conditioned import ConditionedHyperNetwork
from hnetcl.hnets.part import Part


class FullHyperNetwork(ConditionedHyperNetwork):
    """w = MLP(e_t).

    Args:
        shapes, num_tasks, initial: as for every hypernetwork.
        hidden: widths of the MLP's hidden layers; the last one times P is the size of the hypernetwork.
        embedding_dim: E.

    Source: von Oswald et al. 2020 (arXiv:1906.00695), section 2.
    """

    def __init__(
        self,
        shapes: Shapes,
        num_tasks: int,
        hidden: Sequence[int] = (10, 10),
        embedding_dim: int = 32,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(shapes, num_tasks, embedding_dim, initial)
        sizes = [shape.numel() for shape in self.shapes.values()]
        self.assemble([Part(sizes, embedding_dim, hidden, self.num_generated)])
