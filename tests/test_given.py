"""`init="given"`: every task starts at the module's own weights, and learns a change of them."""

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hnetcl
from hnetcl.bn import BatchNormLayer
from hnetcl.errors import ArgumentError
from hnetcl.hnets import BaseHyperNetwork, DirectHyperNetwork, HyperNetwork, make_hypernetwork
from hnetcl.methods.output_regularizer import OutputRegularizer
from hnetcl.model import HyperModel
from hnetcl.vision import import_torchvision

MEMBERS: dict[str, partial[BaseHyperNetwork]] = {
    "full": partial(make_hypernetwork, hnet="full", hidden=(8,)),
    "chunked": partial(make_hypernetwork, hnet="chunked", hidden=(8,)),
    "chunked, heads as wide as the weights": partial(
        make_hypernetwork, hnet="chunked", hidden=(8,), chunk_size=30, head_scale="own"
    ),
    "structured": partial(make_hypernetwork, hnet="structured", hidden=(8,), chunk_size=20),
    "structured, one group": partial(make_hypernetwork, hnet="structured", hidden=(8,), groups=["?.weight"], chunk_size=7),
    "low rank": partial(make_hypernetwork, hnet="low_rank", rank=1, chunk_size=20),
    "low rank, with a base": partial(make_hypernetwork, hnet="low_rank", rank=1, base=True, chunk_size=20),
    "direct": partial(make_hypernetwork, hnet="direct", per_task=("*",)),
}
member = pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS.keys())
every_generate = pytest.mark.parametrize("generate", ["all", "norm", ["4.*", "1.bias"]], ids=str)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def trained_net() -> nn.Sequential:
    """Without batch norm; nothing is constant in it, but one bias."""
    net = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 12), nn.Linear(12, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
        net[4].bias.zero_()  # type: ignore[operator]
    return net


def given(make: partial[BaseHyperNetwork], net: nn.Module, tasks: int = 3, generate: Iterable[str] | str = "all") -> HyperModel:
    return hnetcl.wrap(net, tasks, generate=generate, init="given", **make.keywords)


def learn(model: HyperModel, x: Tensor, y: Tensor, task: int, steps: int) -> list[float]:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.02)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model.train()(x, task), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@every_generate
@member
def test_outputs_are_the_modules(make: partial[BaseHyperNetwork], generate: Iterable[str] | str) -> None:
    """Exactly, for every task, those that are opened later and those of a reloaded model too."""
    net, x = trained_net(), torch.randn(5, 6)
    expected = net(x).detach()
    model = given(make, net, generate=generate)
    for task in range(3):
        assert torch.equal(model.eval()(x, task), expected)
    torch.testing.assert_close(model.all_tasks(x), expected.expand(3, -1, -1), rtol=1e-5, atol=1e-5)
    model.add_task()
    assert torch.equal(model(x, 3), expected)
    torch.manual_seed(1)
    other = given(make, trained_net(), tasks=4, generate=generate)
    assert not torch.allclose(other.eval()(x, 0), expected)
    other.load_tensors({name: value.clone() for name, value in model.saved_tensors().items()})
    assert torch.equal(other(x, 3), expected)


@every_generate
@member
def test_it_learns_from_there(make: partial[BaseHyperNetwork], generate: Iterable[str] | str) -> None:
    """One task's loss falls; saved tensors and deep copies hold what was learned."""
    model, x = given(make, trained_net(), generate=generate), torch.randn(30, 6)
    y = torch.arange(30) % 3
    losses = learn(model, x, y, 1, 60)
    assert losses[-1] < 0.85 * losses[0]
    for p in model.hnet.parameters():
        assert p.grad is not None or not p.numel()
    other = given(make, trained_net(), generate=generate)
    other.load_tensors({name: value.clone() for name, value in model.saved_tensors().items()})
    for same in (other, copy.deepcopy(model)):
        assert torch.equal(same.eval().all_tasks(x), model.eval().all_tasks(x))


@member
def test_the_change_costs_a_number_for_each_parameter(make: partial[BaseHyperNetwork]) -> None:
    """`compression` means what it meant: constants had a gain for each number before, all others have one share."""
    own, kept = (hnetcl.wrap(trained_net(), 3, init=init, **make.keywords).hnet for init in ("own", "given"))
    if isinstance(kept, DirectHyperNetwork):
        assert kept.num_trainable == own.num_trainable
    else:
        assert kept.num_trainable <= own.num_trainable + len(kept.shapes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("moved", [0.0, 0.3], ids=["from the start", "later"])
@pytest.mark.parametrize("chunk_size", [7, 20, 90])
@pytest.mark.parametrize("kind", ["chunked", "structured"])
def test_distances_by_factors(kind: str, chunk_size: int, moved: float, dtype: torch.dtype) -> None:
    """Equal those of the numbers, gradients too, whether the shares have left zero before or after the record."""
    start = dict(trained_net().state_dict())
    shapes = {name: value.shape for name, value in start.items()}
    hnet = HyperNetwork(shapes, 4, kind, hidden=(5,), chunk_size=chunk_size, initial=start, given=True).to(dtype)
    tasks, weights = torch.tensor([0, 3, 1]), torch.rand(3, dtype=dtype)

    def move(by: float) -> None:
        with torch.no_grad():
            for p in hnet.parameters():
                p.add_(by * torch.randn_like(p))

    move(moved)
    records = [hnet.record(tasks, 10**4), BaseHyperNetwork.record(hnet, tasks, 1)]
    assert bool(records[0].common) or chunk_size != 20
    assert hnet.share is not None
    for _ in range(2):
        found, gradients = [], []
        for record in records:
            params, far = hnet.with_squared_distance(torch.tensor(2), tasks, record)
            torch.testing.assert_close(far, hnet.squared_distance(tasks, record), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(params, hnet(2))
            found.append(far.detach())
            gradients.append(torch.autograd.grad(far @ weights, list(hnet.parameters())))
        tolerance = 1e-9 if dtype == torch.float64 else 1e-3
        torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance * 1e-3)
        for one, two in zip(*gradients, strict=True):
            assert float((one - two).abs().max()) <= tolerance * max(1e-2, float(two.abs().max()))
        move(0.1)


@member
def test_the_output_regularizer_holds_old_tasks(make: partial[BaseHyperNetwork]) -> None:
    """Its penalty is the mean squared change of what was written for them, zero at first."""
    model, x, y = given(make, trained_net()), torch.randn(30, 6), torch.arange(30) % 3
    learn(model, x, y, 0, 20)
    method = OutputRegularizer(beta=1.0)
    optimizer = torch.optim.Adam(model.hnet.parameters())
    method.hold(model.hnet, 1, optimizer, torch.Generator())
    before = model.hnet.flat(torch.arange(1)).detach()
    penalty = method.penalty(model.hnet)
    assert penalty is not None
    assert float(penalty.detach()) == 0
    learn(model, x, y.flip(0), 1, 5)
    penalty = method.penalty(model.hnet)
    assert penalty is not None
    far = (model.hnet.flat(torch.arange(1)) - before).square().sum()
    torch.testing.assert_close(penalty.detach(), far.detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("make", list(MEMBERS.values())[1:2] + list(MEMBERS.values())[-2:])
def test_a_pretrained_extractor(make: partial[BaseHyperNetwork]) -> None:
    """Batch norm with trained statistics, whose head alone is written: task 0 is the module, to 1e-5; nothing else moves."""
    net = import_torchvision().models.resnet18(num_classes=4)
    x = torch.randn(4, 3, 32, 32)
    for _ in range(2):
        net.train()(x)
    expected, before = net.eval()(x).detach(), net.conv1.weight.detach().clone()
    model = given(make, net, 2, ["fc.*"])
    torch.testing.assert_close(model.eval()(x, 0), expected, rtol=1e-5, atol=1e-5)
    whole = given(make, copy.deepcopy(net), 2, "all")
    torch.testing.assert_close(whole.eval()(x, 0), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(net.conv1.weight, before)


# ---------------------------------------------------------------------- which of the two is meant


def normed(seen: bool) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    if seen:
        net(torch.randn(4, 6))
    return net


@pytest.mark.parametrize("converted", [False, True])
def test_a_trained_module_without_init_is_refused(converted: bool) -> None:
    """Where its weights would be drawn anew without a word; what lies behind all trained layers may be a fresh head."""

    def net() -> nn.Sequential:
        made = normed(True)
        if converted:
            made[1] = BatchNormLayer(8)
            made(torch.randn(4, 6))
        return made

    refused: Any = pytest.raises(
        ArgumentError, match=r"^init=None: Sequential has been trained .* given keeps its weights, own"
    )
    for generate in ("all", "norm", ["0.weight"], ["*.weight"]):
        with refused:
            hnetcl.wrap(net(), 2, generate=generate, hidden=[4])
    hnetcl.wrap(net(), 2, generate=["2.*"], hidden=[4])
    hnetcl.wrap(net(), 2, hnet=DirectHyperNetwork, per_task=["2.*"])
    for init in ("own", "given", "fan_in"):
        hnetcl.wrap(net(), 2, init=init, hidden=[4])
    hnetcl.wrap(normed(False), 2, hidden=[4])


def test_numbers_off_zero_start_where_they_are() -> None:
    """No draw around zero is like them: lengths of weight norm, uniform numbers from 0 to 1. Others are drawn, as before."""
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(20, 30)), nn.Linear(30, 3))
    net.register_parameter("bias", nn.Parameter(torch.rand(40)))
    lengths = "0.parametrizations.weight.original0"
    own = {name: p.detach().clone() for name, p in net.named_parameters()}
    model = hnetcl.wrap(net, 2, hidden=[8])
    written = model.hnet(0)
    same = {name for name, value in own.items() if torch.equal(written[name], value)}
    assert same == {lengths, "bias"}
    learn(model, torch.randn(9, 20), torch.arange(9) % 3, 0, 3)
    assert not torch.equal(model.hnet(0)[lengths], own[lengths])


# ---------------------------------------------------------------------- frozen parameters


@pytest.mark.parametrize("shared", ["trained", "trained_once", "fixed"])
@pytest.mark.parametrize("generate", ["all", "norm"])
def test_frozen_parameters_stay(generate: str, shared: Any) -> None:
    """They are not written, and no task moves them; a pattern that names one writes it."""

    def net() -> nn.Sequential:
        made = trained_net()
        for name in ("0.weight", "1.bias"):
            made.get_parameter(name).requires_grad_(False)
        return made

    model = hnetcl.wrap(net(), 2, generate=generate, shared=shared, hnet="full")
    before = {name: model.net.get_parameter(name).clone() for name in ("0.weight", "1.bias")}
    assert not before.keys() & model.hnet.shapes.keys()
    for task in range(2):
        model.start_task(task)
        learn(model, torch.randn(9, 6), torch.arange(9) % 3, task, 3)
    assert all(torch.equal(model.net.get_parameter(name), value) for name, value in before.items())
    assert {f"net.{name}" for name in before} <= model.saved_tensors().keys()
    assert list(hnetcl.wrap(net(), 2, generate=["0.weight"], shared=shared, hnet="full").hnet.shapes) == ["0.weight"]


@pytest.mark.parametrize("generate", ["all", "norm"])
def test_everything_frozen(generate: str) -> None:
    with pytest.raises(ArgumentError, match=f"^generate={generate}: all are frozen in Sequential") as caught:
        hnetcl.wrap(trained_net().requires_grad_(False), 2, generate=generate)
    assert "\n" not in str(caught.value)
