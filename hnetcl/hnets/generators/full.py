"""The full generator: one MLP from the task embedding to all parameters at once."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Gt

from hnetcl.errors import ArgumentError
from hnetcl.hnets.base import Shapes
from hnetcl.hnets.generators.chunk_mlp import Activation, ChunkMLP, chunk_mlp_size
from hnetcl.hnets.generators.end_to_end import EndToEnd, HeadScale
from hnetcl.hnets.scaling import measured_shapes
from hnetcl.hnets.sizing import largest_size
from hnetcl.registry import register


@register("hnet", "full")
def full(
    shapes: Shapes,
    num_tasks: int,
    *,
    hidden: Sequence[Annotated[int, Ge(1)]] = (10, 10),
    embedding_dim: Annotated[int, Ge(1)] = 32,
    compression: Annotated[float, Gt(0)] | None = None,
    activation: Activation = "relu",
    head_scale: HeadScale = "unit",
) -> EndToEnd:
    """r = MLP(e_t).

    Args:
        shapes, num_tasks: given by the run.
        hidden: widths of the MLP's hidden layers; the last one times P is the size of the generator.
        embedding_dim: E.
        compression: the wanted ratio of trainable to generated values; the last of `hidden` is then the largest that stays
            within it, whatever is given there. The ratio is always above 2: each generated value has a weight and a bias.
        activation: of the MLP, "relu" or "elu".
        head_scale: "unit" or "own", how wide the outputs of the MLP are, see `EndToEnd`.

    Raises:
        ArgumentError: no hidden layer to fit to `compression`, or a `compression` that no width reaches.

    Source: von Oswald et al. 2020 (arXiv:1906.00695), section 2.
    """
    shapes = measured_shapes(shapes)
    generated = shapes.num_generated
    if compression is not None:
        if not hidden:
            raise ArgumentError("compression", compression, "needs a hidden layer, whose width it sets")
        others, fixed = hidden[:-1], shapes.num_trained + num_tasks * embedding_dim
        width = largest_size(
            compression,
            generated,
            lambda width: fixed + chunk_mlp_size(generated, embedding_dim, [*others, width], generated),
            range(max(1, int(compression)), 0, -1),  # a width costs a value for each that is generated
            "last hidden width",
        )
        hidden = [*others, width]
    sizes = [shape.numel() for shape in shapes.values()]
    mlp = ChunkMLP(sizes, embedding_dim, hidden, generated, activation=activation)
    return EndToEnd([mlp], shapes, embedding_dim, head_scale)
