"""Linear and Conv2d for every algebra."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hnetcl.algebra import ALGEBRAS
from hnetcl.errors import ArgumentError
from hnetcl.layers import Conv2d, Linear

every_algebra = pytest.mark.parametrize("algebra", ALGEBRAS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def joined(x: Tensor) -> Tensor:
    """Component-major real channels [N, 2 Q, *S] as complex ones [N, Q, *S]."""
    return torch.complex(*x.chunk(2, 1))


def split(z: Tensor) -> Tensor:
    """The inverse of `joined`."""
    return torch.cat([z.real, z.imag], 1)


def hamilton(a: Tensor, b: Tensor) -> Tensor:
    """The product of two quaternions [4], written out."""
    a0, a1, a2, a3 = a
    b0, b1, b2, b3 = b
    return torch.stack(
        [
            a0 * b0 - a1 * b1 - a2 * b2 - a3 * b3,
            a0 * b1 + a1 * b0 + a2 * b3 - a3 * b2,
            a0 * b2 - a1 * b3 + a2 * b0 + a3 * b1,
            a0 * b3 + a1 * b2 - a2 * b1 + a3 * b0,
        ]
    )


@every_algebra
@pytest.mark.parametrize("leading", [(), (5,), (5, 3)], ids=str)
def test_linear_maps_the_last_axis(algebra: str, leading: tuple[int, ...]) -> None:
    """[..., in] -> [..., out] with 1 / d of a real layer's weights."""
    layer = Linear(8, 12, algebra)
    assert layer(torch.randn(*leading, 8)).shape == (*leading, 12)
    assert layer.weight.numel() == 8 * 12 // ALGEBRAS[algebra].dim


@every_algebra
@pytest.mark.parametrize(("kernel_size", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 1), (5, 3, 2), (2, 2, 0)], ids=str)
def test_conv_shapes_are_torchs(algebra: str, kernel_size: int, stride: int, padding: int) -> None:
    """Kernel, stride and padding give the output size of torch's convolution."""
    layer = Conv2d(8, 12, kernel_size, algebra, stride=stride, padding=padding)
    expected = torch.nn.Conv2d(8, 12, kernel_size, stride, padding)
    x = torch.randn(2, 8, 11, 9)
    assert layer(x).shape == expected(x).shape
    assert layer.weight.numel() * ALGEBRAS[algebra].dim == expected.weight.numel()


def test_real_layers_are_torchs() -> None:
    """For d = 1 the weight's one component is torch's weight."""
    linear, conv = Linear(3, 5), Conv2d(3, 5, 3, stride=2, padding=1)
    x, image = torch.randn(2, 3), torch.randn(2, 3, 7, 7)
    torch.testing.assert_close(linear(x), F.linear(x, linear.weight[0], linear.bias))
    torch.testing.assert_close(conv(image), F.conv2d(image, conv.weight[0], conv.bias, 2, 1))


def test_complex_linear_is_torchs_product() -> None:
    """A complex layer is torch's complex matrix product."""
    layer, x = Linear(6, 10, "complex", bias=False), torch.randn(4, 6)
    torch.testing.assert_close(layer(x), split(joined(x) @ torch.complex(*layer.weight).T))


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1)])
def test_complex_conv_is_torchs(stride: int, padding: int) -> None:
    """A complex convolution is torch's convolution of complex tensors."""
    layer, x = Conv2d(4, 6, 3, "complex", bias=False, stride=stride, padding=padding), torch.randn(2, 4, 8, 7)
    expected = F.conv2d(joined(x), torch.complex(*layer.weight), None, stride, padding)
    torch.testing.assert_close(layer(x), split(expected))


def test_quaternion_linear_is_hamiltons_product() -> None:
    """Output number o is the sum of w_oi x_i, the weight on the left."""
    layer, x = Linear(8, 12, "quaternion", bias=False), torch.randn(8)
    numbers = x.reshape(4, 2)
    expected = [sum(hamilton(layer.weight[:, o, i], numbers[:, i]) for i in range(2)) for o in range(3)]
    torch.testing.assert_close(layer(x), torch.stack([torch.as_tensor(y) for y in expected], 1).flatten())


def test_quaternion_conv_is_the_linear_layer_at_every_pixel() -> None:
    """With a 1 x 1 kernel a convolution is a linear layer over channels."""
    conv, linear = Conv2d(8, 12, 1, "quaternion", bias=False), Linear(8, 12, "quaternion", bias=False)
    linear.weight.data = conv.weight.data[..., 0, 0]
    x = torch.randn(2, 8, 3, 5)
    torch.testing.assert_close(conv(x), linear(x.movedim(1, -1)).movedim(-1, 1))


@every_algebra
@pytest.mark.parametrize(("layer", "space"), [(Linear, ()), (partial(Conv2d, kernel_size=1), (1, 1))], ids=["linear", "conv"])
def test_bias_is_added_per_channel(algebra: str, layer: Callable[..., Linear | Conv2d], space: tuple[int, ...]) -> None:
    """The bias starts at zero and is one number per real output channel, or absent."""
    assert layer(4, 8, algebra=algebra, bias=False).bias is None
    biased = layer(4, 8, algebra=algebra)
    assert biased.bias is not None
    assert biased.bias.equal(torch.zeros(8))
    biased.bias.data.normal_()
    torch.testing.assert_close(biased(torch.zeros(1, 4, *space)).flatten(), biased.bias.data)


@every_algebra
@pytest.mark.parametrize(
    ("layer", "shape", "fan_in"),
    [(partial(Linear, 512, 256), (256, 512), 512), (partial(Conv2d, 64, 64, 3), (4, 64, 12, 12), 64 * 9)],
    ids=["linear", "conv"],
)
def test_initial_weights_keep_the_scale(
    algebra: str, layer: Callable[..., Linear | Conv2d], shape: tuple[int, ...], fan_in: int
) -> None:
    """Weights have variance 2 / fan_in, so that E[relu(W x)^2] = E[x^2]."""
    built, x = layer(algebra=algebra), torch.randn(shape)
    assert built.weight.var().item() == pytest.approx(2 / fan_in, rel=0.1)
    assert built(x).relu().square().mean().item() == pytest.approx(x.square().mean().item(), rel=0.15)


@pytest.mark.parametrize("algebra", ["complex", "quaternion"])
@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (partial(Linear, 7, 8), "in_features=7"),
        (partial(Linear, 8, 7), "out_features=7"),
        (partial(Conv2d, 7, 8, 3), "in_channels=7"),
        (partial(Conv2d, 8, 7, 3), "out_channels=7"),
    ],
)
def test_widths_must_be_multiples(layer: Callable[..., Linear | Conv2d], named: str, algebra: str) -> None:
    """A width that is no multiple of d is refused by name, in one line, at construction."""
    with pytest.raises(ArgumentError, match=rf"\A{named}: must be a positive multiple of {ALGEBRAS[algebra].dim} .*\Z"):
        layer(algebra=algebra)


@every_algebra
def test_channels_last_is_remembered(algebra: str) -> None:
    """Outputs and gradients have the format of torch's layer, for contiguous input too; other formats and types pass it by."""
    layer, x = Conv2d(8, 12, 3, algebra), torch.randn(4, 8, 7, 5, requires_grad=True)
    before = layer(x)
    gradient = torch.autograd.grad(before.square().sum(), layer.weight)
    for form in (torch.channels_last, torch.channels_last_3d):
        layer.to(memory_format=form).double().float()  # type: ignore[call-overload]
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert layer.real_weight().is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, before)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), layer.weight), gradient)
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    (dx,) = torch.autograd.grad(layer(last).square().sum(), last)
    assert dx.is_contiguous(memory_format=torch.channels_last)
    layer.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    assert layer(x).is_contiguous()
