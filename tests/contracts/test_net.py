"""What every main network must do. A new network is a row of `NETS`, and is then tested like all others."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hnetcl
from hnetcl import BatchNormLayer, convert_batchnorm
from hnetcl.bn import ConvBatchNorm, FusedBatchNormLayer, VirtualBatchNormLayer, reference_pass
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
EachNormedNet = pytest.mark.parametrize("name", [name for name in NETS if "norm" in given("net", name)])
ALGEBRAS = ["real", "complex", "quaternion"]


def test_every_net_is_in_the_table() -> None:
    assert NETS.keys() == {n for n in names("net") if find("net", n).__module__.startswith("hnetcl.")}


class TorchsNorm(nn.BatchNorm2d):
    """For dense layers too."""

    def __init__(self, width: int, algebra: str) -> None:
        super().__init__(width)

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def made(name: str, algebra: str = "real", norm: bool = True, kind: Callable[..., nn.Module] = BatchNormLayer) -> nn.Module:
    torch.manual_seed(0)
    own = {"algebra": algebra} if "norm" in given("net", name) else {}
    layer = partial(kind, algebra=algebra) if norm else None
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


@EachNet
@pytest.mark.parametrize("algebra", ALGEBRAS)
def test_all_tasks_at_once_and_each_as_a_plain_network(name: str, algebra: str) -> None:
    model = hnetcl.wrap(made(name, algebra), num_tasks=2, hidden=[4])
    x = torch.randn(4, 3, 32, 32)
    for task in range(2):
        model(torch.randn(8, 3, 32, 32), task).sum().backward()  # rows of statistics part
    model.eval()
    many = model.all_tasks(x)
    for task in range(2):
        torch.testing.assert_close(many[task], model(x, task))
        torch.testing.assert_close(many[task], model.plain(task).eval()(x))


@EachNormedNet
@pytest.mark.parametrize("algebra", ALGEBRAS)
def test_fused_it_computes_the_same(name: str, algebra: str) -> None:
    plain, fused = made(name, algebra).double(), made(name, algebra, kind=FusedBatchNormLayer).double()
    if not any(isinstance(m, ConvBatchNorm) for m in fused.modules()):
        pytest.skip("it has no convolutions")
    x = torch.randn(4, 3, 32, 32).double()
    for training in (True, False):
        found = []
        for net in (plain.train(training), fused.train(training)):
            torch.manual_seed(1)  # of dropout
            logits = net(x)
            found.append([logits, *torch.autograd.grad(logits.square().sum(), list(net.parameters()))])
        for own, other in zip(*found, strict=True):
            torch.testing.assert_close(own, other)


@EachNormedNet
@pytest.mark.parametrize("algebra", ALGEBRAS)
def test_virtual_norm_looks_at_no_other_sample(name: str, algebra: str) -> None:
    net = made(name, algebra, kind=VirtualBatchNormLayer).eval()
    with torch.no_grad(), reference_pass(net):
        net(torch.randn(8, 3, 32, 32))
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), rtol=1e-3, atol=1e-4)


@EachNormedNet
def test_torchs_batch_norm_in_it_is_converted(name: str) -> None:
    ours, theirs = made(name), convert_batchnorm(made(name, kind=TorchsNorm))
    x = torch.randn(4, 3, 32, 32)
    torch.manual_seed(1)
    first = ours(x)
    torch.manual_seed(1)
    torch.testing.assert_close(first, theirs(x))


@EachNet
def test_it_is_exported_and_compiled_whole(name: str) -> None:
    net = made(name).eval()
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), net(x))
        torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))
