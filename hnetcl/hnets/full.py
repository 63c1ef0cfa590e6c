"""The full hypernetwork: one MLP from the task embedding to all parameters at once."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.hnets.base import Shapes
from hnetcl.hnets.compression import largest_size
from hnetcl.hnets.part import Part, part_size
from hnetcl.hnets.parted import PartedHyperNetwork
from hnetcl.registry import register


@register("hnet", "full")
class FullHyperNetwork(PartedHyperNetwork):
    """w = MLP(e_t).

    Args:
        shapes, num_tasks, initial: as for every hypernetwork.
        hidden: widths of the MLP's hidden layers; the last one times P is the size of the hypernetwork.
        embedding_dim: E.
        compression: the wanted ratio of trainable to written numbers; the last of `hidden` is then the largest that stays
            within it, whatever is given there. The ratio is always above 2: each written number has a weight and a bias.
        activation: of the MLP, "relu" or "elu".
        head_scale: "unit" or "own", how wide the numbers of the MLP are, see `PartedHyperNetwork.assemble`.
        given: whether every task starts at `initial` exactly, see `ConditionedHyperNetwork`.

    Raises:
        ArgumentError: no hidden layer to fit to `compression`, or a `compression` that no width reaches.

    Source: von Oswald et al. 2020 (arXiv:1906.00695), section 2.
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
        compression: Annotated[float, Gt(0)] | None = None,
        activation: Literal["relu", "elu"] = "relu",
        head_scale: Literal["unit", "own"] = "unit",
    ) -> None:
        super().__init__(shapes, num_tasks, embedding_dim, initial, given)
        written = self.num_generated
        if compression is not None:
            if not hidden:
                raise ArgumentError("compression", compression, "needs a hidden layer, whose width it sets")
            fixed, others = self.num_trainable, hidden[:-1]
            width = largest_size(
                compression,
                written,
                lambda width: fixed + part_size(written, embedding_dim, [*others, width], written),
                range(max(1, int(compression)), 0, -1),  # a width costs a number for each that is written
                "last hidden width",
            )
            hidden = [*others, width]
        sizes = [shape.numel() for shape in self.shapes.values()]
        self.assemble([Part(sizes, embedding_dim, hidden, written, activation=activation)], head_scale)
