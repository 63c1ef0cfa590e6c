"""What every main network must do. A new network is a row of `NETS`, and is then tested like all others."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import hnetcl
from hnetcl import BatchNormLayer
from hnetcl.registry import find, given, make, names

NETS: dict[str, dict[str, Any]] = {  # name -> what makes it small
    "lenet": {"channels": [8, 8], "hidden": [8]},
    "mlp": {"hidden": [8, 16]},
    "resnet": {"depth": 8, "width": 4},
    "resnet18": {"width": 4},
    "torchvision": {"model": "squeezenet1_1"},
    "wide_resnet": {"depth": 10, "width": 4},
    "zenke": {"channels": [4, 8], "hidden": [8]},
}
EachNet = pytest.mark.parametrize("name", NETS)
ALGEBRAS = ["real", "complex", "quaternion"]


def test_every_net_is_in_the_table() -> None:
    assert NETS.keys() == {n for n in names("net") if find("net", n).__module__.startswith("hnetcl.")}


def made(name: str, algebra: str = "real", norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    own = {"algebra": algebra} if "norm" in given("net", name) else {}
    layer = partial(BatchNormLayer, algebra=algebra) if norm else None  # type: ignore[arg-type]
    net: nn.Module = make("net", {"name": name, **NETS[name], **own}, in_shape=(3, 32, 32), num_outputs=5, norm=layer)
    return net


@EachNet
@pytest.mark.parametrize("algebra", ALGEBRAS)
@pytest.mark.parametrize("norm", [True, False])
def test_images_become_logits_and_all_parameters_learn(name: str, algebra: str, norm: bool) -> None:
    net = made(name, algebra, norm)
    x = torch.randn(4, 3, 32, 32)
    logits = net(x)
    assert logits.shape == (4, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert torch.equal(*(made(name, algebra, norm).eval()(x) for _ in range(2)))  # a seed gives the same network


@EachNet
def test_under_a_hypernetwork_tasks_differ(name: str) -> None:
    model = hnetcl.wrap(made(name), num_tasks=2, hidden=[4])
    x = torch.randn(4, 3, 32, 32)
    model(x, 0).square().sum().backward()
    first, second = (model.eval()(x, task) for task in range(2))
    assert first.shape == second.shape == (4, 5)
    assert not torch.equal(first, second)


@EachNet
def test_its_norm_layers_are_the_given_ones(name: str) -> None:
    if "norm" not in given("net", name):
        pytest.skip("its norm layers are converted: tests/test_convert.py")
    layers = [type(m) for m in made(name).modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert layers
    assert set(layers) == {BatchNormLayer}
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in made(name, norm=False).modules())
