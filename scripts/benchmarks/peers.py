"""Other libraries, and how their hypernetworks' weights read as ours."""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders import Absent
from hnetcl.hnets import HyperNetwork


def peer(module: str) -> ModuleType:
    """Another library's module, or Absent where the library is not installed."""
    if not is_installed(module.partition(".")[0]):
        raise Absent("not installed")
    return import_module(module)


def is_installed(library: str) -> bool:
    """Whether it can be imported."""
    return find_spec(library) is not None


def read_as_ours(ours: HyperNetwork, shared: Sequence[Tensor], own: Sequence[Tensor]) -> dict[str, Tensor]:
    """Tensors of a hypnettorch hypernetwork under the names and in the shapes of our parameters.

    Its HMLP is our full generator, its ChunkedHMLP with `cond_chunk_embs=False` our chunked one. It puts the
    chunk's embedding before the task's, we put it behind.

    Args:
        ours: of the same sizes, with one MLP.
        shared: as its `unconditional_params`: weight and bias of every layer, then the chunk embeddings where it has any.
        own: as its `conditional_params`, the task embeddings.
    """
    (mlp,) = ours.generator.chunk_mlps()
    layers = [i for i, layer in enumerate(mlp.trunk) if isinstance(layer, nn.Linear)]
    names = [f"{name}.{kind}" for name in (*(f"trunk.{i}" for i in layers), "head") for kind in ("weight", "bias")]
    first, *rest = shared
    if mlp.chunk_embedding is not None:
        names.append("chunk_embedding")
        first = first.roll(-mlp.chunk_embedding.shape[1], 1)
    found = {f"generator.mlps.0.{name}": value for name, value in zip(names, [first, *rest], strict=True)}
    return {**found, "embedding": torch.stack(list(own))}


@torch.no_grad()
def copy_hypnettorch(ours: HyperNetwork, theirs: Any) -> None:
    """From then on ours writes what theirs writes, to the same derivatives: scales are 1.

    Args:
        ours: made with `initial` values at random for all parameters, so that it writes none as a constant and a gain.
        theirs: HMLP or ChunkedHMLP of the same sizes.
    """
    assert not any(ours.constant.values())
    values = read_as_ours(ours, theirs.unconditional_params, theirs.conditional_params)
    learned = dict(ours.named_parameters())
    assert learned.keys() == {*values, "gain"}
    for name, value in values.items():
        learned[name].copy_(value)
    ours.scale.fill_(1)
