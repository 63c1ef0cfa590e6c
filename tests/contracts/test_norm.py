"""What every norm layer must do. A new one is a row of `NORMS`, and is then tested like all others."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hnetcl
from hnetcl.bn import norm_layers, reference_pass, using_task
from hnetcl.bn.base import NormLayer
from hnetcl.registry import find, make, names

NORMS: dict[str, dict[str, Any]] = {"fused": {}, "layer": {}, "virtual": {}}  # name -> what makes it small
EachNorm = pytest.mark.parametrize("name", NORMS)
EachAlgebra = pytest.mark.parametrize("algebra", ["real", "complex", "quaternion"])


def test_every_norm_is_in_the_table() -> None:
    assert NORMS.keys() == {n for n in names("bn") if find("bn", n).__module__.startswith("hnetcl.")}


def made(name: str, algebra: str = "quaternion") -> NormLayer:
    torch.manual_seed(0)
    layer: NormLayer = make("bn", {"name": name, **NORMS[name], "algebra": algebra}, num_features=8)
    return layer


def samples(*sizes: int) -> Tensor:
    return 2 * torch.randn(6, 8, *sizes) + 1


def seen(layer: nn.Module, x: Tensor, row: int = 0) -> Tensor:
    """What training on x gives, by a row that has a reference of x where the layer needs one."""
    with reference_pass(layer), torch.no_grad():
        layer(x, stats_id=row)
    y: Tensor = layer.train()(x, stats_id=row)
    return y


@EachNorm
@EachAlgebra
@pytest.mark.parametrize("sizes", [(), (5,), (3, 2), (2, 3, 2)])
def test_the_shape_stays_and_all_learns(name: str, algebra: str, sizes: tuple[int, ...]) -> None:
    layer, x = made(name, algebra), samples(*sizes).requires_grad_()
    y = seen(layer, x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    y.pow(3).sum().backward()
    for learned in (x, *layer.parameters()):
        assert learned.grad is not None
        assert learned.grad.isfinite().all()
        assert learned.grad.any()


@EachNorm
@EachAlgebra
def test_it_starts_at_mean_0_and_power_1(name: str, algebra: str) -> None:
    """E|y|^2 = 1 for a number of d components: what the layer behind it counts on."""
    layer, x = made(name, algebra), 3 * torch.randn(400, 8, 5) + 2
    d = {"real": 1, "complex": 2, "quaternion": 4}[algebra]
    y = seen(layer, x)
    torch.testing.assert_close(y.mean((0, 2)), torch.zeros(8), rtol=0, atol=0.05)
    torch.testing.assert_close(d * y.square().mean(), torch.tensor(1.0), rtol=0.2 if name == "virtual" else 0.01, atol=0)


@EachNorm
def test_a_task_has_a_row_of_its_own(name: str) -> None:
    """Opening, training and reading one row moves no other."""
    layer, x = made(name), samples(3)
    seen(layer, x)
    first = layer.eval()(x, stats_id=0).detach()
    layer.checkpoint_stats()
    assert layer.num_stats == 2
    seen(layer, 3 * x + 1, row=1)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    assert torch.equal(layer.eval()(x, stats_id=0), first)
    assert not torch.equal(layer(x, stats_id=1), first)
    with using_task(layer, 0):
        assert torch.equal(layer(x), first)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@EachNorm
def test_copies_and_state_dicts_compute_the_same(name: str) -> None:
    layer, x = made(name), samples()
    layer.checkpoint_stats()
    seen(layer, x)
    seen(layer, x + 1, row=1)
    loaded = made(name)
    loaded.load_state_dict(layer.state_dict())
    for other in (loaded, copy.deepcopy(layer)):
        for row in range(2):
            assert torch.equal(other.eval()(x, stats_id=row), layer.eval()(x, stats_id=row))


@EachNorm
@EachAlgebra
def test_a_hypernetwork_writes_its_gamma_and_beta(name: str, algebra: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), made(name, algebra), nn.ReLU(), nn.Linear(8, 3))
    own = {f"1.{key}" for key, _ in net[1].named_parameters()}
    assert own
    model, x = hnetcl.wrap(net, num_tasks=2, hidden=[4]), torch.randn(6, 5)
    assert own <= model.hnet.shapes.keys()
    assert all(layer.num_stats == 2 for layer in norm_layers(model).values())
    with reference_pass(model), torch.no_grad():
        [model(x, task) for task in range(2)]
    model(x, 1).square().sum().backward()
    assert all(p.grad is not None for p in model.hnet.parameters())
