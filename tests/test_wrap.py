"""Any module under a hypernetwork."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hnetcl
from hnetcl.bn import BatchNormLayer, batchnorm_layers
from hnetcl.errors import ArgumentError
from hnetcl.hnets import DirectHyperNetwork
from hnetcl.model import HyperModel
from hnetcl.vision import import_torchvision


class Tied(nn.Module):
    """Two linear layers with one weight, dropout, a buffer, and no batch norm."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6)
        self.decode.weight = self.encode.weight
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(self.norm(self.encode(x)).relu(), 0.5, self.training)
        logits: Tensor = self.decode(hidden) * self.scale
        return logits


def train(model: HyperModel, x: Tensor, task: int, steps: int = 20) -> None:
    model.train().start_task(task)
    learns = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learns, 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x, task), torch.arange(len(x)) % 2).backward()
        optimizer.step()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_a_residual_network_learns_two_tasks_and_reloads() -> None:
    """torchvision's resnet18: each task has its weights and rows, and a fresh model takes them all from the saved tensors."""

    def build() -> HyperModel:
        resnet = import_torchvision().models.resnet18(num_classes=2)
        return hnetcl.wrap(resnet, num_tasks=2, hidden=[8], embedding_dim=8, chunk_size=20_000)

    model, pictures = build(), [torch.randn(8, 3, 32, 32) + task for task in range(2)]
    assert len(batchnorm_layers(model.net)) == 20
    assert all(layer.num_stats == 2 for layer in batchnorm_layers(model.net).values())
    for task, x in enumerate(pictures):
        train(model, x, task, steps=2)
    other = build()
    other.load_tensors({name: value.clone() for name, value in model.saved_tensors().items()})
    logits = [model.eval()(x, task) for task, x in enumerate(pictures)]
    for task, x in enumerate(pictures):
        assert torch.equal(other.eval()(x, task), logits[task])
        assert not torch.equal(other(x, task, stats=1 - task), logits[task])


def test_written_values_have_the_modules_scale() -> None:
    """Before training each layer's written weights have the standard deviation of its own initial values, biases and norms the
    very values."""
    resnet = import_torchvision().models.resnet18(num_classes=2)
    own = {name: value.detach().clone() for name, value in resnet.named_parameters()}
    model = hnetcl.wrap(resnet, num_tasks=3, hidden=[64], chunk_embedding_dim=64, chunk_size=5000)
    many = model.hnet(torch.arange(3))
    for name, value in own.items():
        if value.ndim == 4:
            torch.testing.assert_close(many[name].std(), value.std(), rtol=0.2, atol=0)
        elif value.unique().numel() == 1:
            assert torch.equal(many[name], value.expand_as(many[name]))


def test_tied_parameters_dropout_and_buffers() -> None:
    """A tied weight is written once and used twice; saved tensors hold it under no name; dropout and buffers work."""
    model = hnetcl.wrap(Tied(), num_tasks=2, hnet="full", hidden=[5])
    assert "decode.weight" not in model.hnet.shapes
    assert not any("weight" in name for name in model.saved_tensors() if name.startswith("net."))
    x, params = torch.randn(4, 6), model.hnet(1)
    hidden = F.layer_norm(
        x @ params["encode.weight"].T + params["encode.bias"], (6,), params["norm.weight"], params["norm.bias"]
    )
    expected = 2 * (hidden.relu() @ params["encode.weight"].T + params["decode.bias"])
    torch.testing.assert_close(model.eval()(x, 1), expected)
    torch.testing.assert_close(model.all_tasks(x)[1], expected)
    assert not torch.equal(model.train()(x, 1), model(x, 1))


def test_only_norm_layers_are_written() -> None:
    """`generate="norm"`: the hypernetwork writes the norm layers' parameters, all others are shared and learn."""
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 2))
    model = hnetcl.wrap(net, num_tasks=2, generate="norm", hnet="full", hidden=[5])
    assert list(model.hnet.shapes) == ["1.weight", "1.bias", "3.weight", "3.bias"]
    assert isinstance(net[1], BatchNormLayer)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {"0.weight", "0.bias", "4.weight", "4.bias"}


@pytest.mark.parametrize(
    ("shared", "moves"), [("trained", [True, True]), ("trained_once", [True, False]), ("fixed", [False, False])]
)
def test_what_is_not_written_is_shared(shared: Any, moves: list[bool]) -> None:
    """Shared parameters learn with every task, with the first, or never; they are saved and come back."""

    def build() -> HyperModel:
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        return hnetcl.wrap(net, 2, generate=["2.*"], shared=shared, hnet=DirectHyperNetwork, per_task=["*"])

    model, x = build(), torch.randn(8, 6)
    for task in range(2):
        before = model.net.get_parameter("0.weight").clone()
        train(model, x, task)
        assert torch.equal(before, model.net.get_parameter("0.weight")) != moves[task]
    other = build()
    other.load_tensors({name: value.clone() for name, value in model.saved_tensors().items()})
    torch.testing.assert_close(other.eval().all_tasks(x), model.eval().all_tasks(x))


@pytest.mark.parametrize("net", [nn.Linear(3, 2), nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), nn.LayerNorm(3)])
def test_small_networks_at_the_defaults(net: nn.Module) -> None:
    """No argument but the number of tasks is needed, however small the module is."""
    model, x = hnetcl.wrap(net, num_tasks=2), torch.randn(8, 4 if isinstance(net, nn.Sequential) else 3)
    train(model, x, 1, steps=2)
    assert model.eval().all_tasks(x).shape[:2] == (2, 8)
    assert "the smallest in reach" in model.hnet.note


@pytest.mark.parametrize("generate", [("0.*",), {"0.weight", "0.bias"}, iter(["0.*"])])
def test_patterns_in_any_collection(generate: Iterable[str]) -> None:
    model = hnetcl.wrap(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), 2, generate=generate)
    assert list(model.hnet.shapes) == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generate": ["head.*"]}, r"generate=\['head.\*'\]: 'head.\*' matches none of 0.weight, 0.bias"),
        ({"generate": "norm"}, "generate=norm: Sequential has no norm layer"),
        ({"generate": None}, "generate=None: must be all, norm, or patterns of parameters' names"),
        ({"generate": []}, r"generate=\[\]: must be all, norm, or patterns"),
        ({"generate": ""}, "generate='': must be all, norm, or patterns"),
        ({"generate": [""]}, r"generate=\[''\]: must be all, norm, or patterns"),
        ({"generate": [None]}, r"generate=\[None\]: must be all, norm, or patterns"),
        ({"generate": 3}, "generate=3: must be all, norm, or patterns"),
        ({"init": "keep"}, "init=keep: allowed: fan_in, fan_out, given, own"),
        ({"shared": "frozen"}, "shared=frozen: allowed: fixed, trained, trained_once"),
        ({"stats": "none"}, "stats=none: "),
        ({"num_tasks": 0}, "num_tasks=0: must be at least 1"),
        ({"num_tasks": 2.0}, "num_tasks=2.0: must be a whole number"),
        ({"num_tasks": True}, "num_tasks=True: must be a whole number"),
        ({"hidden": 3}, r"hidden=3: must be of type list\[int\]"),
        ({"hidden": "33"}, r"hidden=33: must be of type list\[int\]"),
        ({"hnet": "direct", "hidden": [4]}, r"hidden=\[4\]: there is no such key; .*per_task"),
        ({"hidden": [3.0]}, r"hidden=\[3.0\]: must be of type list\[int\]"),
    ],
)
def test_refused(options: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"num_tasks": 2, "hnet": "full", **options}
    net = nn.Sequential(nn.Linear(3, 3)) if "stats" not in options else nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(ArgumentError, match=message):
        hnetcl.wrap(net, **values)  # type: ignore[arg-type]


def test_statistics_that_no_layer_would_have() -> None:
    with pytest.raises(ArgumentError, match=r"^stats=x: allowed: batch, "):
        hnetcl.wrap(nn.Linear(6, 3), 2, stats="x")


@pytest.mark.parametrize("net", [nn.Linear(6, 3), nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))])
def test_a_module_without_values_is_refused(net: nn.Module) -> None:
    with pytest.raises(ArgumentError, match=r"^module=\w+: (0\.)?weight has no values \(device=meta\)"):
        hnetcl.wrap(net.to("meta"), 2)
