"""Modules that hold layers, parameters and caches beside the places that torch knows."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnetcl.bn import convert_batchnorm
from hnetcl.errors import ArgumentError
from hnetcl.hnets import DirectHyperNetwork
from hnetcl.model import HyperModel
from hnetcl.wrapping import wrap


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def under(net: nn.Module) -> HyperModel:
    return wrap(net, 2, hnet="full", hidden=[4], embedding_dim=4)


class Helper:
    """An object that is no module."""

    def __init__(self, layers: Any) -> None:
        self.layers = layers


class Listed(nn.Module):
    """Calls its layers from a plain container."""

    def __init__(self, hold: Callable[[list[nn.Module]], Any]) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.held = hold([self.linear, self.bn])

    def forward(self, x: Tensor) -> Tensor:
        held = self.held.layers if isinstance(self.held, Helper) else self.held
        for layer in held.values() if isinstance(held, dict) else held:
            x = layer(x) if callable(layer) else layer[0](x)
        return x


@pytest.mark.parametrize(
    "hold",
    [
        lambda layers: layers,
        lambda layers: dict(enumerate(layers)),
        lambda layers: [[layer] for layer in layers],
        lambda layers: ([layers[0]], [layers[1]]),
        lambda layers: Helper(layers),
    ],
    ids=["list", "dict", "nested", "lists in a tuple", "object"],
)
def test_a_batch_norm_that_a_container_holds_too(hold: Callable[[list[nn.Module]], Any]) -> None:
    """It is converted there as well: each task is what a copy of the network would be."""
    net = Listed(hold)
    copies = [copy.deepcopy(net) for _ in range(2)]
    model = wrap(net, 2, hnet=DirectHyperNetwork, per_task=["*"])
    for task in range(2):
        x = torch.randn(32, 6) * (1 + 3 * task) + 5 * task
        torch.testing.assert_close(model.train()(x, task), copies[task].train()(x))
    x = torch.randn(8, 6)
    for task in range(2):
        torch.testing.assert_close(model.eval()(x, task), copies[task].eval()(x))
    torch.testing.assert_close(model.plain(1).eval()(x), copies[1](x))


@pytest.mark.parametrize(
    "hold",
    [
        lambda layers: tuple(layers),
        lambda layers: [layers[0], layers[1].forward],
        lambda layers: [layers[0].__call__, layers[1].__call__],
        lambda layers: [*layers, layers[1].weight],
    ],
    ids=["tuple", "method", "methods", "weight"],
)
def test_a_batch_norm_that_is_held_where_it_cant_be_replaced(hold: Callable[[list[nn.Module]], Any]) -> None:
    net = Listed(hold)
    with pytest.raises(ArgumentError, match="it is also held where it can't be replaced"):
        convert_batchnorm(net)
    assert type(net.bn) is nn.BatchNorm1d  # nothing was changed


def test_tied_parameters_of_batch_norms_stay_tied() -> None:
    def make() -> nn.Sequential:
        net = nn.Sequential(nn.BatchNorm1d(6), nn.Tanh(), nn.BatchNorm1d(6), nn.LayerNorm(6))
        net[2].weight = net[3].weight = net[0].weight
        return net

    nets = [make(), convert_batchnorm(make())]
    assert isinstance(nets[1], nn.Sequential)
    assert nets[1][0].weight is nets[1][2].weight is nets[1][3].weight
    x, outputs = torch.randn(16, 6), []
    for net in nets:
        optimizer = torch.optim.SGD(net.parameters(), 0.5)
        for _ in range(5):
            optimizer.zero_grad()
            (net(x) - 1).square().mean().backward()
            optimizer.step()
        outputs.append(net.eval()(x))
    torch.testing.assert_close(*outputs)
    assert sorted(under(make()).hnet.shapes) == ["0.bias", "0.weight", "2.bias", "3.bias"]


def test_what_cant_be_tied_or_shared_is_refused() -> None:
    net = nn.Sequential(nn.BatchNorm1d(8), nn.LayerNorm(8))
    net[1].weight = net[0].weight
    with pytest.raises(ArgumentError, match=r"0.weight=1.weight: .*they are one parameter"):
        convert_batchnorm(net, algebra="quaternion")
    net = nn.Sequential(nn.BatchNorm1d(6), nn.BatchNorm1d(6))
    net[1].running_mean = net[0].running_mean
    with pytest.raises(ArgumentError, match=r"0.running_mean=1.running_mean: .*they are one buffer"):
        convert_batchnorm(net)


class WithWeight(nn.Module):
    def __init__(self, hold: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.held = hold(self.inner.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.held[0])


@pytest.mark.parametrize("hold", [lambda w: [w], lambda w: (w,), lambda w: {0: [w]}], ids=["list", "tuple", "nested"])
def test_a_parameter_that_a_container_holds_too_is_refused(hold: Callable[[Tensor], Any]) -> None:
    with pytest.raises(ArgumentError, match="net=WithWeight: holds a parameter that is to be written in a plain"):
        under(WithWeight(hold))
    assert under(nn.Sequential(nn.LayerNorm(6), WithWeight(hold))[0]).hnet.shapes  # alone it is no fault


class Deep(nn.Module):
    """Keeps what its weight gives in containers of containers and in an object; a flag and a number say that it did."""

    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.nested: dict[str, dict[str, Tensor]] = {"training": {}}
        self.rows: list[list[Tensor]] = [[]]
        self.helper = Helper(None)
        self.length: int | None = None
        self.rotation: Tensor | None = None
        self.fresh = False
        self.register_buffer("cache", torch.zeros(6, 6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.linear.weight.detach(), self.linear.bias.detach()
        if self.training:
            self.fresh = False
            return F.linear(x, self.linear.weight, self.linear.bias)
        if self.length is None or len(x) > self.length:
            self.length, self.rotation = 1000 + len(x), weight.cos()
        if not self.fresh:
            self.cache, self.fresh = weight.tanh(), True
        kept = self.nested["training"].setdefault("exp", weight.exp())
        if not self.rows[0]:
            self.rows[0].append(bias.sin())
        if self.helper.layers is None:
            self.helper.layers = bias.square()
        assert self.rotation is not None
        logits: Tensor = x @ (self.rotation + self.cache + kept) + self.rows[0][0] + self.helper.layers
        return logits


def test_caches_at_any_depth_with_what_says_that_they_are_filled() -> None:
    net = Deep()
    model, x = under(net).eval(), torch.randn(5, 6)
    with torch.no_grad():
        for task in (0, 1, 0):
            torch.testing.assert_close(model(x, task), model.plain(task).eval()(x))
        torch.testing.assert_close(model.all_tasks(x), torch.stack([model.plain(task).eval()(x) for task in range(2)]))
        model.train()(x, 1)
        torch.testing.assert_close(model.eval()(x, 1), model.plain(1).eval()(x))
    model.caches.reset()
    assert not net.nested["training"]
    assert not net.rows[0]
    assert net.length is None
    assert net.rotation is None
    assert net.helper.layers is None


class Warm(nn.Module):
    """Changes buffers, from some step on, in ways that torch does not count."""

    mean: Tensor
    var: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.frozen = nn.Linear(6, 6), True
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        changes = self.training and not self.frozen
        if changes:
            self.steps.data.copy_(self.steps + 1)
        return F.batch_norm(self.linear(x), self.mean, self.var, None, None, changes) + self.steps


@pytest.mark.parametrize("as_task", [int, torch.tensor])
def test_buffers_that_change_uncounted_after_a_while(as_task: Callable[[int], Any]) -> None:
    net = Warm()
    copies = [copy.deepcopy(net) for _ in range(2)]
    model = wrap(net, 2, hnet=DirectHyperNetwork, per_task=["*"])

    def train(task: int, x: Tensor, steps: int) -> None:
        for _ in range(steps):
            torch.testing.assert_close(model.train()(x, as_task(task)), copies[task].train()(x))

    x = torch.randn(8, 6)
    train(0, x, 1)
    for each in (net, *copies):
        each.frozen = False
    train(0, x, 3)
    train(1, x * 4 + 5, 4)
    for task in range(2):
        torch.testing.assert_close(model.eval()(x, as_task(task)), copies[task].eval()(x))
    train(0, x, 2)
    for task in range(2):
        torch.testing.assert_close(model.eval()(x, as_task(task)), copies[task].eval()(x))
    assert model.buffers_by_task.rows.keys() == {"mean", "var", "steps"}


class Slash(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("a/b", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.get_buffer("a/b").add_(1)
        logits: Tensor = self.linear(x)
        return logits


class Late(nn.Module):
    """Makes a layer in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        if not hasattr(self, "late"):
            self.late = nn.Linear(6, 3)
        return self.late(self.linear(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_nets_that_are_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match="net=late: this layer is made in the forward"):
        under(Late()).train()(torch.randn(2, 6), 0)
    with pytest.raises(ArgumentError, match="net=a/b: this buffer has a / in its name"):
        under(Slash()).train()(torch.randn(2, 6), 0)
    scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)))
    with pytest.raises(ArgumentError, match="is TorchScript"):
        under(scripted)
