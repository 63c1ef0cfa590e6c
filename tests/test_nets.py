"""The contract of main networks, for every member and algebra."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from hnetcl.algebra import ALGEBRAS
from hnetcl.bn import BatchNormLayer, batchnorm_layers
from hnetcl.errors import ArgumentError
from hnetcl.nets import MLP, LeNet

NETS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "mlp": (MLP, {"hidden": (24, 8)}),
    "mlp, one layer": (MLP, {"hidden": (8,)}),
    "lenet": (LeNet, {"channels": (4, 8), "hidden": (16,)}),
    "lenet, deep": (LeNet, {"channels": (8,), "hidden": (16, 8)}),
}
net_of_every_kind = pytest.mark.parametrize(("make", "widths"), NETS.values(), ids=NETS.keys())
algebras = pytest.mark.parametrize("algebra", ALGEBRAS)


@net_of_every_kind
@algebras
@pytest.mark.parametrize("in_shape", [(1, 28, 28), (3, 17, 20)])
@pytest.mark.parametrize("with_norm", [True, False])
def test_images_to_logits(
    make: Callable[..., nn.Module], widths: dict[str, Any], algebra: Any, in_shape: tuple[int, ...], with_norm: bool
) -> None:
    norm = partial(BatchNormLayer, algebra=algebra) if with_norm else None
    net = make(in_shape, 7, algebra=algebra, norm=norm, **widths)
    logits = net(torch.randn(5, *in_shape))
    assert logits.shape == (5, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert len(batchnorm_layers(net)) == with_norm * sum(len(w) for w in widths.values())
    assert {"head.weight", "head.bias"} <= dict(net.named_parameters()).keys()


@pytest.mark.parametrize("make", [MLP, LeNet])
@algebras
def test_logits_start_at_the_scale_of_the_input(make: Callable[..., nn.Module], algebra: str) -> None:
    torch.manual_seed(0)
    logits = make((1, 28, 28), 10, algebra=algebra)(torch.randn(200, 1, 28, 28))
    assert 0.3 < float(logits.detach().std()) < 10


@net_of_every_kind
def test_inner_layers_have_a_dth_of_the_weights(make: Callable[..., nn.Module], widths: dict[str, Any]) -> None:
    def inner(algebra: str) -> int:
        weights = [p for name, p in make((1, 28, 28), 10, algebra=algebra, **widths).named_parameters() if "weight" in name]
        return sum(p.numel() for p in weights[1:-1])

    assert inner("real") == 2 * inner("complex") == 4 * inner("quaternion")


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (MLP, {"hidden": ()}, r"hidden=\(\): must not be empty"),
        (
            MLP,
            {"hidden": (8, 10), "algebra": "quaternion"},
            r"hidden=\[8, 10\]: every width must be a multiple of 4 \(quaternion\)",
        ),
        (LeNet, {"channels": ()}, r"channels=\(\): must not be empty"),
        (LeNet, {"hidden": ()}, r"hidden=\(\): must not be empty"),
        (LeNet, {"channels": (4, 4, 4, 4)}, r"channels=\[4, 4, 4, 4\]: too many convolutions for images of \(1, 28, 28\)"),
    ],
)
def test_refused_widths(make: Callable[..., nn.Module], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make((1, 28, 28), 10, **arguments)
