"""`compression=` finds the largest hypernetwork that stays within the ratio, for every member that has a size to set."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from hnetcl.errors import ArgumentError
from hnetcl.hnets import HyperNetwork
from hnetcl.hnets.generators.chunk_mlp import ChunkMLP, chunk_mlp_size
from hnetcl.hnets.generators.structured import divisors, piece
from hnetcl.hnets.sizing import chunk_sizes

SHAPES = {"a": (60, 40, 3, 3), "b": (60, 40, 3, 3), "c": (40, 60), "c.bias": (40,), "norm": (60,), "d": (10, 40)}
CHUNKED: dict[str, Callable[..., HyperNetwork]] = {
    "chunked": HyperNetwork,
    "structured": partial(HyperNetwork, generator="structured"),
    "structured, two groups": partial(HyperNetwork, generator="structured", groups=["a", ["c", "d"]]),
    "low rank": partial(HyperNetwork, generator="low_rank"),
    "low rank, with a base": partial(HyperNetwork, generator="low_rank", base=True),
}
chunked = pytest.mark.parametrize("make", CHUNKED.values(), ids=CHUNKED.keys())


@chunked
@pytest.mark.parametrize("compression", [1.2, 1.5, 3.0])
def test_no_larger_chunk_keeps_to_the_ratio(make: Callable[..., HyperNetwork], compression: float) -> None:
    hnet = make(SHAPES, 5, compression=compression)
    assert hnet.compression <= compression
    mlps = [mlp for mlp in hnet.modules() if isinstance(mlp, ChunkMLP)]
    used, most = max(mlp.chunk_size for mlp in mlps), max(sum(mlp.sizes) for mlp in mlps)
    for chunk_size in [size for size in chunk_sizes(most) if size > used][-5:]:
        other = make(SHAPES, 5, chunk_size=chunk_size)
        assert other.compression > compression or other.num_trainable == hnet.num_trainable


@chunked
def test_a_ratio_out_of_reach(make: Callable[..., HyperNetwork]) -> None:
    with pytest.raises(ArgumentError, match=r"compression=0.001: the smallest ratio that a chunk size reaches is \d+\.\d+"):
        make(SHAPES, 5, compression=0.001)


@pytest.mark.parametrize("compression", [4.0, 10.0, 33.3])
def test_the_last_hidden_width_of_the_full_member(compression: float) -> None:
    hnet = HyperNetwork(SHAPES, 5, "full", hidden=(20, 7), compression=compression)
    (mlp,) = hnet.generator.chunk_mlps()
    width = mlp.head.in_features
    assert hnet.compression <= compression < HyperNetwork(SHAPES, 5, "full", hidden=(20, width + 1)).compression


def test_what_the_full_member_refuses() -> None:
    with pytest.raises(ArgumentError, match=r"compression=1.5: the smallest ratio that a last hidden width reaches is 2\.\d+"):
        HyperNetwork(SHAPES, 5, "full", compression=1.5)
    with pytest.raises(ArgumentError, match=r"compression=9\.0: needs a hidden layer"):
        HyperNetwork(SHAPES, 5, "full", hidden=(), compression=9)


@pytest.mark.parametrize("hidden", [(), (7,), (7, 5)])
@pytest.mark.parametrize(("chunk_size", "chunk_embedding_dim"), [(1, 3), (9, 4), (50, 2), (50, 0)])
def test_the_size_of_an_mlp(hidden: tuple[int, ...], chunk_size: int, chunk_embedding_dim: int) -> None:
    mlp = ChunkMLP([20, 30], 6, hidden, chunk_size, chunk_embedding_dim)
    assert chunk_mlp_size(50, 6, hidden, chunk_size, chunk_embedding_dim) == sum(p.numel() for p in mlp.parameters())


@pytest.mark.parametrize("numbers", [1, 2, 7, 100, 997])
def test_chunk_sizes_are_those_of_equal_chunks(numbers: int) -> None:
    assert list(chunk_sizes(numbers)) == sorted({-(-numbers // k) for k in range(1, numbers + 1)}, reverse=True)


@pytest.mark.parametrize("most", [1, 5, 64, 100, 5000])
@pytest.mark.parametrize("numbers", [1, 64, 997, 36864])
def test_a_layer_is_cut_into_equal_pieces_where_it_can_be(numbers: int, most: int) -> None:
    size = piece(numbers, most)
    assert size <= most
    assert numbers % size == 0 or not [k for k in divisors(numbers) if most / 2 < k <= most]
    assert -(-numbers // size) <= max(1, 2 * numbers / most)


def members(hnet: HyperNetwork) -> list[list[str]]:
    """The names of the parameters that each MLP generates."""
    left = iter(hnet.generator.names)
    return [[next(left) for _ in mlp.sizes] for mlp in hnet.generator.chunk_mlps()]


def test_layers_of_one_shape_share_a_head_and_each_has_chunks_of_its_own() -> None:
    hnet = HyperNetwork(SHAPES, 2, "structured", chunk_size=10_000)
    assert members(hnet) == [["a", "b"], ["c"], ["d"], ["c.bias", "norm"]]
    first = hnet.generator.chunk_mlps()[0]
    assert (first.chunks, first.chunk_size) == (6, 7200)
    before = hnet(0)
    with torch.no_grad():
        hnet.get_parameter("generator.mlps.0.chunk_embedding")[:3] += 1.0
    after = hnet(0)
    assert {name for name in SHAPES if not torch.equal(before[name], after[name])} == {"a"}


def test_groups_by_name() -> None:
    hnet = HyperNetwork(SHAPES, 2, "structured", groups=["a", ["c", "d"]], chunk_size=3000)
    assert members(hnet) == [["a"], ["c"], ["d"], ["b", "c.bias", "norm"]]
    many = hnet(torch.arange(2))
    assert torch.equal(hnet.flat(torch.arange(2)), torch.cat([many[name].flatten(1) for name in SHAPES], 1))
    with pytest.raises(ArgumentError, match=r"groups=\[\['conv\*'\]\]: 'conv\*' matches none of a, b"):
        HyperNetwork(SHAPES, 2, "structured", groups=["conv*"])


def test_matrices_of_low_rank() -> None:
    """Each is the product of two factors: its rank tells. A base lifts it, and is where every task starts."""
    torch.manual_seed(0)
    start = {name: torch.randn(shape) if len(shape) > 1 else torch.zeros(shape) for name, shape in SHAPES.items()}
    hnet = HyperNetwork(SHAPES, 2, "low_rank", rank=3, chunk_size=500, initial=start).double()
    written = hnet(1)
    for name, rows in (("a", 60), ("c", 40), ("d", 10)):
        assert int(torch.linalg.matrix_rank(written[name].reshape(rows, -1))) == 3
    based = HyperNetwork(SHAPES, 2, "low_rank", rank=3, base=True, chunk_size=500, initial=start)
    for task in range(2):
        assert all(torch.equal(value, start[name]) for name, value in based(task).items())
    with torch.no_grad():
        assert based.share is not None
        based.share.fill_(1.0)
    change = based(1)["a"] - start["a"]
    assert int(torch.linalg.matrix_rank(change.reshape(60, -1).double(), rtol=1e-4)) == 3
    with pytest.raises(ArgumentError, match="rank=0: must be at least 1"):
        HyperNetwork(SHAPES, 2, "low_rank", rank=0)


SMALL: dict[str, dict[str, tuple[int, ...]]] = {
    "two layers": {"0.weight": (6, 4), "0.bias": (6,), "1.weight": (2, 6), "1.bias": (2,)},
    "one number": {"slope": ()},
    "a vector": {"bias": (7,)},
}


anywhere = pytest.mark.parametrize("make", [m for n, m in CHUNKED.items() if "groups" not in n])


@pytest.mark.parametrize("shapes", SMALL.values(), ids=SMALL.keys())
@anywhere
def test_the_default_ratio_is_a_wish(
    make: Callable[..., HyperNetwork], shapes: dict[str, tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    """A small network gets the smallest ratio in reach, said once; the same ratio is refused where the user gave it."""
    with caplog.at_level("INFO", "hnetcl"):
        hnet = make(shapes, 2)
    (record,) = caplog.records
    assert record.getMessage() == hnet.note
    assert record.levelname == "INFO"
    assert hnet.note.startswith(f"no chunk size comes to compression {1.95 if 'base' in str(make) else 0.95}")
    assert hnet.note.endswith(f"the smallest in reach, {hnet.compression:.3f}")
    for chunk_size in range(1, hnet.num_generated + 1):
        assert make(shapes, 2, chunk_size=chunk_size).compression >= hnet.compression
    with pytest.raises(ArgumentError, match=r"compression=0.95: the smallest ratio that a chunk size reaches is \d+\.\d+"):
        make(shapes, 2, compression=0.95)


@anywhere
def test_where_the_default_is_in_reach_there_is_nothing_to_say(
    make: Callable[..., HyperNetwork], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "hnetcl"):
        hnet = make({"weight": (300, 400)}, 2)
    assert (hnet.note, caplog.records) == ("", [])
    assert hnet.compression <= (1.95 if "base" in str(make) else 0.95)
    with pytest.raises(ArgumentError, match="compression=nan: must be a finite number"):
        make({"weight": (300, 400)}, 2, compression=float("nan"))
