"""`bake`: the same output from torch's layers."""

from functools import partial
from typing import Any

import pytest
import torch
from test_fold import used
from torch import Tensor, nn

from hnetcl.algebra import ALGEBRAS
from hnetcl.bn import BATCH, BatchNormLayer, NormLayer, VirtualBatchNormLayer, bake, reference_pass, using_task
from hnetcl.bn.conv_bn import ConvBatchNorm
from hnetcl.bn.fixed import FixedNorm
from hnetcl.bn.fold import OURS
from hnetcl.bn.statistics import MODES
from hnetcl.kernels.whitening import WHITENINGS
from hnetcl.layers import Conv2d
from hnetcl.nets import LeNet
from hnetcl.registry import find


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assert_baked(net: nn.Module, x: Tensor, tolerance: float) -> nn.Module:
    """A copy without layers of ours, that computes the same; the module is left as it is."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    baked = bake(net)
    assert not any(isinstance(layer, (NormLayer, *OURS)) for layer in baked.modules())
    with torch.no_grad():
        torch.testing.assert_close(baked(x), net(x), rtol=tolerance, atol=tolerance)
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    return baked


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("stats", [name for name in MODES if name != "batch"])
@pytest.mark.parametrize("algebra", ALGEBRAS)
def test_every_mode_and_precision(algebra: Any, stats: Any, dtype: torch.dtype) -> None:
    """One norm behind a convolution, which is folded, one behind a ReLU, which stays as a fixed map."""
    layers = [Conv2d(3, 8, 3), BatchNormLayer(8, algebra=algebra, stats=stats), nn.ReLU()]
    net = used(nn.Sequential(*layers, BatchNormLayer(8, algebra=algebra, stats=stats, affine=False), Conv2d(8, 4, 1, algebra)))
    net.to(dtype)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    assert_baked(net, torch.randn(5, 3, 7, 6, dtype=dtype), tolerance)


@pytest.mark.parametrize("whitening", WHITENINGS)
@pytest.mark.parametrize("algebra", ALGEBRAS)
@pytest.mark.parametrize("shape", [(6, 8), (3, 8, 5, 4)])
def test_virtual(shape: tuple[int, ...], algebra: Any, whitening: Any) -> None:
    layer = VirtualBatchNormLayer(8, algebra=algebra, whitening=whitening).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    with torch.no_grad(), reference_pass(layer):
        layer(torch.randn(9, *shape[1:], dtype=torch.float64) * 2 + 1)
    assert_baked(layer, torch.randn(shape, dtype=torch.float64), 1e-9)
    layer.weight = layer.bias = None
    assert_baked(layer, torch.randn(shape, dtype=torch.float64), 1e-9)


def test_complex_numbers() -> None:
    x = torch.randn(3, 4, 5, dtype=torch.complex128)
    assert_baked(used(BatchNormLayer(8, algebra="complex")), x, 1e-10)


def test_a_network_is_folded_without_gradients_too() -> None:
    """`MaxPool` asks whether gradients are taken, and without them what only a tensor can answer."""
    net = used(LeNet((1, 20, 20), 2, lambda width: BatchNormLayer(width, algebra="quaternion"), algebra="quaternion"))
    with torch.no_grad():
        baked = assert_baked(net, torch.randn(2, 1, 20, 20, dtype=torch.float64), 1e-9)
    assert [type(layer).__name__ for layer in baked.modules() if isinstance(layer, nn.Identity)] == ["Identity"] * 3


def test_pairs_with_hooks_and_what_fx_cannot_trace() -> None:
    hooked = ConvBatchNorm(Conv2d(4, 8, 3, "complex"), BatchNormLayer(8, algebra="complex"))
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)

    class Untraceable(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() < 1e9 else x

    net = used(Untraceable(hooked, nn.ReLU(), ConvBatchNorm(Conv2d(8, 4, 3), BatchNormLayer(4))))
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    baked = bake(net)
    torch.testing.assert_close(baked(x), net(x), rtol=1e-9, atol=1e-9)
    assert [type(layer).__name__ for layer in baked[2]] == ["Conv2d", "FixedNorm"]  # type: ignore[index]


@pytest.mark.parametrize("name", ["resnet", "wide_resnet"])
def test_deep_networks(name: str) -> None:
    """All batch norm behind convolutions is folded; that before them, as in a wide ResNet, is a fixed map."""
    options: dict[str, Any] = {"depth": 10, "dropout": 0.3} if name == "wide_resnet" else {"depth": 8}
    norm, classes = partial(BatchNormLayer, algebra="quaternion"), find("net", name)
    net = used(classes((3, 8, 8), 2, norm, algebra="quaternion", width=8, **options))
    baked = assert_baked(net, torch.randn(3, 3, 8, 8, dtype=torch.float64), 1e-9)
    assert any(isinstance(layer, FixedNorm) for layer in baked.modules()) == (name == "wide_resnet")


def test_what_depends_on_the_batch_is_refused() -> None:
    for net in (nn.Sequential(BatchNormLayer(8, stats="batch")), nn.Sequential(BatchNormLayer(8))):
        with using_task(net, BATCH), pytest.raises(ValueError, match="0 normalizes by the batch's own statistics"):
            bake(net)
    with pytest.raises(ValueError, match="2 rows of statistics and none chosen"):
        bake(used(nn.Sequential(BatchNormLayer(8)), rows=2))
