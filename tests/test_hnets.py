"""The contract of hypernetworks, for every member."""

from collections.abc import Callable
from functools import partial
from typing import get_args

import pytest
import torch
from torch import nn

from hnetcl.errors import ArgumentError
from hnetcl.hnets import BaseHyperNetwork, DirectHyperNetwork, HyperNetwork
from hnetcl.hnets.direct import logits_layer
from hnetcl.hnets.generators.chunk_mlp import ACTIVATIONS, Activation, ChunkMLP
from hnetcl.vision import import_torchvision

SHAPES = {"body.weight": (1, 12, 20), "norm.weight": (12,), "norm.bias": (12,), "head.weight": (1, 3, 12), "head.bias": (3,)}
MEMBERS: dict[str, Callable[..., BaseHyperNetwork]] = {
    "full": partial(HyperNetwork, generator="full", hidden=(6,), embedding_dim=5),
    "chunked": partial(HyperNetwork, generator="chunked", hidden=(6,), embedding_dim=5, chunk_embedding_dim=4, chunk_size=50),
    "chunked, one number at a time": partial(HyperNetwork, generator="chunked", chunk_size=1),
    "chunked, one chunk": partial(HyperNetwork, generator="chunked", chunk_size=10**6),
    "chunked, no hidden layer": partial(HyperNetwork, generator="chunked", hidden=(), chunk_size=50),
    "structured": partial(HyperNetwork, generator="structured", hidden=(6,), chunk_size=50),
    "structured, one group": partial(HyperNetwork, generator="structured", hidden=(6,), groups=["body.*"], chunk_size=7),
    "low rank": partial(HyperNetwork, generator="low_rank", rank=2, chunk_size=50),
    "low rank, with a base": partial(HyperNetwork, generator="low_rank", rank=1, base=True, chunk_size=50),
    "direct": DirectHyperNetwork,
    "direct, nothing shared": partial(DirectHyperNetwork, per_task=("*",)),
    "direct, all shared": partial(DirectHyperNetwork, per_task=()),
}
member = pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS.keys())
conditioned = pytest.mark.parametrize("make", list(MEMBERS.values())[:9], ids=list(MEMBERS)[:9])


def initial() -> dict[str, torch.Tensor]:
    values = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    return values | {"norm.weight": torch.ones(12), "norm.bias": torch.zeros(12), "head.bias": torch.zeros(3)}


@member
def test_writes_every_name_in_its_shape(make: Callable[..., BaseHyperNetwork]) -> None:
    hnet = make(SHAPES, 4)
    assert {name: tuple(value.shape) for name, value in hnet(2).items()} == SHAPES
    many = hnet(torch.tensor([0, 2, 3]))
    assert {name: tuple(value.shape) for name, value in many.items()} == {n: (3, *s) for n, s in SHAPES.items()}


@member
def test_a_vector_of_tasks_is_the_tasks_one_by_one(make: Callable[..., BaseHyperNetwork]) -> None:
    hnet = make(SHAPES, 4).double()
    many = hnet(torch.tensor([3, 1, 3]))
    for k, task in enumerate([3, 1, 3]):
        for name, value in hnet(task).items():
            torch.testing.assert_close(many[name][k], value)
        for name, value in hnet(torch.tensor(task)).items():
            torch.testing.assert_close(many[name][k], value)


@member
def test_without_a_graph_the_same_is_written(make: Callable[..., BaseHyperNetwork]) -> None:
    """There it is written in place: twice the same, and nothing else has changed."""
    hnet = make(SHAPES, 4)
    expected = {name: value.detach() for name, value in hnet(torch.arange(4)).items()}
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for _ in range(2):
                torch.testing.assert_close(hnet(torch.arange(4)), expected)
    torch.testing.assert_close({name: value.detach() for name, value in hnet(torch.arange(4)).items()}, expected)


@member
def test_gradients_reach_every_parameter(make: Callable[..., BaseHyperNetwork]) -> None:
    hnet = make(SHAPES, 4)
    sum(value.square().sum() for value in hnet(torch.arange(4)).values()).backward()
    for name, parameter in hnet.named_parameters():
        assert parameter.grad is not None or not parameter.numel(), name


@member
def test_a_new_task_keeps_the_old_ones(make: Callable[..., BaseHyperNetwork]) -> None:
    hnet = make(SHAPES, 2)
    before = hnet.flat(torch.arange(2)).detach()
    hnet.add_task()
    assert hnet.num_tasks == 3
    torch.testing.assert_close(hnet.flat(torch.arange(2)), before, rtol=0, atol=0)
    assert hnet(2).keys() == SHAPES.keys()


@member
def test_tasks_that_do_not_exist(make: Callable[..., BaseHyperNetwork]) -> None:
    hnet = make(SHAPES, 2)
    for task in (-1, 2):
        with pytest.raises(ValueError, match=f"task={task}: there are tasks 0 to 1"):
            hnet(task)


@member
def test_refused_arguments(make: Callable[..., BaseHyperNetwork]) -> None:
    with pytest.raises(ArgumentError, match="num_tasks=0"):
        make(SHAPES, 0)
    with pytest.raises(ArgumentError, match="shapes"):
        make({}, 1)
    with pytest.raises(ArgumentError, match="initial"):
        make(SHAPES, 1, initial={"body.weight": torch.zeros(3)})


@member
def test_compression_counts_what_learns(make: Callable[..., BaseHyperNetwork]) -> None:
    hnet = make(SHAPES, 3)
    written = sum(torch.Size(shape).numel() for shape in SHAPES.values())
    assert hnet.num_generated == written
    assert hnet.compression == sum(p.numel() for p in hnet.parameters()) / written


@member
def test_state_survives_a_reload(make: Callable[..., BaseHyperNetwork]) -> None:
    hnet, other = make(SHAPES, 3, initial=initial()), make(SHAPES, 3, initial=initial())
    other.load_state_dict(hnet.state_dict())
    torch.testing.assert_close(other.flat(torch.arange(3)), hnet.flat(torch.arange(3)), rtol=0, atol=0)


@conditioned
def test_constants_start_where_the_network_starts_them(make: Callable[..., BaseHyperNetwork]) -> None:
    """Norm layers and biases: exactly, for every task, and they can learn."""
    start = initial()
    hnet = make(SHAPES, 3, initial=start)
    for task in range(3):
        params = hnet(task)
        for name in ("norm.weight", "norm.bias", "head.bias"):
            assert torch.equal(params[name], start[name])
    optimizer = torch.optim.SGD(hnet.parameters(), lr=0.1)
    hnet(0)["norm.weight"].sum().backward()
    optimizer.step()
    assert not torch.equal(hnet(0)["norm.weight"], start["norm.weight"])


def test_random_parameters_start_as_wide_as_the_network_draws_them() -> None:
    net = nn.Sequential(nn.Linear(100, 80), nn.Linear(80, 3))
    start = {name: value.detach() for name, value in net.named_parameters()}
    shapes = {name: value.shape for name, value in start.items()}
    hnet = HyperNetwork(shapes, 200, "full", hidden=(64,), initial=start)
    written = {name: value.detach() for name, value in hnet(torch.arange(200)).items()}
    for name in ("0.weight", "1.weight"):
        assert float(written[name].std()) == pytest.approx(float(start[name].std()), rel=0.15)


@pytest.mark.parametrize("compression", [0.2, 0.5, 0.95, 2.0])
def test_compression_finds_the_largest_chunk(compression: float) -> None:
    shapes = {"weight": (300, 400)}
    hnet = HyperNetwork(shapes, 5, "chunked", hidden=(10, 10), compression=compression)
    assert hnet.compression <= compression
    (mlp,) = hnet.generator.chunk_mlps()
    chunks = mlp.chunks
    fewer = -(-hnet.num_generated // (chunks - 1))
    assert HyperNetwork(shapes, 5, "chunked", hidden=(10, 10), chunk_size=fewer).compression > compression


def test_chunk_sizes_that_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"compression=0.001: the smallest ratio that a chunk size reaches is \d+\.\d+"):
        HyperNetwork({"weight": (30, 40)}, 5, "chunked", compression=0.001)
    with pytest.raises(ArgumentError, match="chunk_size=10: can't be given with"):
        HyperNetwork({"weight": (30, 40)}, 5, "chunked", compression=0.5, chunk_size=10)
    with pytest.raises(ArgumentError, match="compression=0: must be greater than 0"):
        HyperNetwork({"weight": (30, 40)}, 5, "chunked", compression=0)
    with pytest.raises(ArgumentError, match="chunk_size=0"):
        HyperNetwork({"weight": (30, 40)}, 5, "chunked", chunk_size=0)


def test_the_direct_hypernetwork_starts_at_the_networks_values_and_shares_all_but_heads() -> None:
    start = initial()
    hnet = DirectHyperNetwork(SHAPES, 2, initial=start)
    for task in range(2):
        for name, value in hnet(task).items():
            assert torch.equal(value, start[name])
    optimizer = torch.optim.SGD(hnet.parameters(), lr=0.1)
    sum(value.sum() for value in hnet(1).values()).backward()
    optimizer.step()
    assert torch.equal(hnet(0)["head.weight"], start["head.weight"])
    assert not torch.equal(hnet(1)["head.weight"], start["head.weight"])
    assert torch.equal(hnet(0)["body.weight"], hnet(1)["body.weight"])


LOGITS: dict[str, tuple[dict[str, tuple[int, ...]], int | None, list[str]]] = {
    "head": (
        {"head.norm.weight": (8,), "head.fc.weight": (3, 8), "tail.weight": (3, 3)},
        3,
        ["head.norm.weight", "head.fc.weight"],
    ),
    "the last": ({"0.weight": (8, 4), "0.bias": (8,), "3.weight": (3, 8), "3.bias": (3,)}, None, ["3.weight", "3.bias"]),
    "the last that is K wide": (
        {"squeeze.weight": (3, 8), "fc.weight": (3, 8), "fc.bias": (3,), "body.weight": (8, 8)},
        3,
        ["fc.weight", "fc.bias"],
    ),
    "a convolution": ({"a.weight": (8, 4, 3, 3), "b.weight": (3, 8, 1, 1)}, 3, ["b.weight"]),
    "ours": ({"fc.weight": (1, 3, 8), "fc.bias": (3,)}, 3, ["fc.weight", "fc.bias"]),
    "weight norm": (
        {"fc.bias": (3,), "fc.parametrizations.weight.original0": (3, 1), "fc.parametrizations.weight.original1": (3, 8)},
        3,
        ["fc.bias", "fc.parametrizations.weight.original0", "fc.parametrizations.weight.original1"],
    ),
    "a complex layer": ({"fc.weight": (3, 8, 2), "fc.bias": (3, 2)}, 3, ["fc.weight", "fc.bias"]),
    "not a norm layer": (
        {"fc.weight": (3, 8), "norm.weight": (3, 10), "norm.bias": (12,), "last.weight": (3,)},
        3,
        ["fc.weight"],
    ),
}


@pytest.mark.parametrize(("shapes", "outputs", "own"), LOGITS.values(), ids=LOGITS.keys())
def test_each_task_has_the_layer_that_makes_the_logits(
    shapes: dict[str, tuple[int, ...]], outputs: int | None, own: list[str]
) -> None:
    hnet = DirectHyperNetwork(shapes, 2, num_outputs=outputs)
    assert [name for name, is_own in hnet.is_own.items() if is_own] == own


@pytest.mark.parametrize(
    ("shapes", "outputs"),
    [({"norm.weight": (3,)}, None), ({"norm.weight": (3, 10), "norm.bias": (12,)}, 3), ({"fc.weight": (4, 8)}, 3)],
)
def test_no_layer_makes_the_logits(shapes: dict[str, tuple[int, ...]], outputs: int | None) -> None:
    with pytest.raises(ArgumentError, match="per_task=None: no linear or convolution layer"):
        DirectHyperNetwork(shapes, 2, num_outputs=outputs)


OTHERS = {
    "resnet18": "fc.",
    "mobilenet_v2": "classifier.1.",
    "vgg11": "classifier.6.",
    "squeezenet1_1": "classifier.1.",
    "googlenet": "fc.",
    "inception_v3": "fc.",
    "densenet121": "classifier.",
    "vit_b_16": "heads.head.",
    "swin_t": "head.",
    "convnext_tiny": "classifier.2.",
    "maxvit_t": "classifier.5.",
}


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize(("model", "layer"), OTHERS.items())
def test_the_logits_of_torchvisions_networks(model: str, layer: str) -> None:
    with torch.device("meta"):
        options = {"input_size": (224, 224)} if model == "maxvit_t" else {}
        net = import_torchvision().models.get_model(model, weights=None, num_classes=2, **options)
    shapes = {name: value.shape for name, value in net.named_parameters()}
    assert logits_layer(shapes, 2) == [name for name in shapes if name.startswith(layer)]


def test_direct_patterns_must_match() -> None:
    with pytest.raises(ArgumentError, match=r"per_task=\['fc.\*'\]: 'fc.\*' matches none of body.weight"):
        DirectHyperNetwork(SHAPES, 2, per_task=("fc.*",))


def test_task_parameters_are_those_with_an_entry_per_task() -> None:
    for make in MEMBERS.values():
        hnet = make(SHAPES, 7)
        assert all(len(parameter) == 7 for parameter in hnet.task_parameters())
        assert isinstance(hnet, DirectHyperNetwork | HyperNetwork)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlps_keep_unit_variance(activation: Activation) -> None:
    """Whatever stands behind the trunk's layers."""
    assert set(ACTIVATIONS) == set(get_args(Activation))
    torch.manual_seed(0)
    squares = [
        ChunkMLP([500], 40, (300, 300), 500, activation=activation)(torch.randn(20, 40))[0].square().mean() for _ in range(10)
    ]
    assert torch.stack(squares).mean().item() == pytest.approx(1, rel=0.1)
    with pytest.raises(ArgumentError, match="activation=relo: did you mean relu"):
        HyperNetwork(SHAPES, 2, activation="relo")


@pytest.mark.parametrize(
    "make",
    [
        partial(HyperNetwork, generator="full"),
        partial(HyperNetwork, generator="chunked", chunk_size=50),
        partial(HyperNetwork, generator="structured", chunk_size=50),
    ],
)
def test_heads_as_wide_as_the_weights_write_the_same_weights(make: Callable[..., BaseHyperNetwork]) -> None:
    """To begin with: their numbers are smaller, their scales larger, and constants can move as far."""
    start = initial()
    start["body.weight"] /= 30
    start["head.weight"] /= 30
    written = {}
    for head_scale in ("unit", "own"):
        torch.manual_seed(0)
        hnet = make(SHAPES, 3, hidden=(16,), head_scale=head_scale, initial=start)
        with torch.no_grad():
            hnet.get_parameter("gain").fill_(0.5)
            written[head_scale] = hnet.flat(torch.arange(3))
    torch.testing.assert_close(*written.values())
    with pytest.raises(ArgumentError, match="head_scale=units: did you mean unit"):
        make(SHAPES, 3, head_scale="units")
