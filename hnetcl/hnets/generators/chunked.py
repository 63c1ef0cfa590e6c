"""The chunked generator: one small MLP generates the parameters piece by piece."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Gt

from hnetcl.hnets.base import Shapes
from hnetcl.hnets.generators.chunk_mlp import Activation, ChunkMLP, chunk_mlp_size
from hnetcl.hnets.generators.end_to_end import EndToEnd, HeadScale
from hnetcl.hnets.scaling import measured_shapes
from hnetcl.hnets.sizing import find_chunk_size
from hnetcl.registry import register


@register("hnet", "chunked")
def chunked(
    shapes: Shapes,
    num_tasks: int,
    *,
    hidden: Sequence[Annotated[int, Ge(1)]] = (10, 10),
    embedding_dim: Annotated[int, Ge(1)] = 32,
    chunk_embedding_dim: Annotated[int, Ge(1)] = 32,
    chunk_size: Annotated[int, Ge(1)] | None = None,
    compression: Annotated[float, Gt(0)] | None = None,
    activation: Activation = "relu",
    head_scale: HeadScale = "unit",
) -> EndToEnd:
    """chunk_k = MLP([e_t, c_k]) for all chunks k in one batch; the chunks laid end to end are the raw outputs.

    Args:
        shapes, num_tasks: given by the run.
        hidden: widths of the MLP's hidden layers.
        embedding_dim: E, of task embeddings.
        chunk_embedding_dim: of the chunk embeddings c_k, which all tasks share.
        chunk_size: values in a chunk; give it or `compression`.
        compression: the wanted ratio of trainable to generated values; the chunk size is then the largest that stays within
            it. 0.95 where neither is given; where no chunk size comes to that, the one with the smallest ratio.
        activation: of the MLP, "relu" or "elu".
        head_scale: "unit" or "own", how wide the outputs of the MLP are, see `EndToEnd`.

    Raises:
        ArgumentError: both sizes given, or a `compression` that no chunk size reaches.

    Source: von Oswald et al. 2020 (arXiv:1906.00695), section 2, "Compression".
    """
    shapes = measured_shapes(shapes)
    generated, fixed = shapes.num_generated, shapes.num_trained + num_tasks * embedding_dim
    size, note = find_chunk_size(
        chunk_size,
        compression,
        generated,
        generated,
        lambda size: fixed + chunk_mlp_size(generated, embedding_dim, hidden, size, chunk_embedding_dim),
    )
    sizes = [shape.numel() for shape in shapes.values()]
    mlp = ChunkMLP(sizes, embedding_dim, hidden, size, chunk_embedding_dim, activation)
    return EndToEnd([mlp], shapes, embedding_dim, head_scale, note=note)
