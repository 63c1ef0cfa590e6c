"""Convolutions of numbers, with all options, against torch's complex ones and Hamilton's product written out."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numbers_reference import from_complex, multiply, times, to_complex
from peers import peer
from torch import Tensor, nn
from torch.func import functional_call, vmap

from hnetcl.algebra import ALGEBRAS
from hnetcl.bn import BatchNormLayer, ConvBatchNorm, fold_batchnorm
from hnetcl.errors import ArgumentError
from hnetcl.layers import Conv1d, Conv2d, Conv3d, ConvNd, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, ConvTransposeNd

Layer = ConvNd | ConvTransposeNd
every_algebra = pytest.mark.parametrize("algebra", ALGEBRAS)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, of its own layers too

CASES: dict[str, Callable[..., Layer]] = {  # of 4 and 8 numbers
    "1d": partial(Conv1d, kernel_size=3, padding=1),
    "1d, all": partial(Conv1d, kernel_size=2, stride=2, padding=3, dilation=3, groups=2, padding_mode="circular"),
    "2d": partial(Conv2d, kernel_size=3, bias=False),
    "pointwise": partial(Conv2d, kernel_size=1),
    "tuples": partial(Conv2d, kernel_size=(3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    "same": partial(Conv2d, kernel_size=3, padding="same", dilation=(1, 2)),
    "same, even": partial(Conv2d, kernel_size=(2, 4), padding="same", groups=2),
    "valid": partial(Conv2d, kernel_size=(1, 3), padding="valid", stride=2),
    "reflect": partial(Conv2d, kernel_size=3, padding=(1, 2), padding_mode="reflect"),
    "replicate": partial(Conv2d, kernel_size=2, padding="same", padding_mode="replicate"),
    "circular": partial(Conv2d, kernel_size=3, padding=1, stride=2, padding_mode="circular"),
    "groups": partial(Conv2d, kernel_size=3, padding=1, groups=2),
    "depthwise": partial(Conv2d, kernel_size=3, groups=4),
    "3d": partial(Conv3d, kernel_size=(1, 2, 3), stride=(1, 1, 2), padding=1),
    "3d, groups": partial(Conv3d, kernel_size=2, groups=4, padding_mode="replicate", padding=1),
    "transposed 1d": partial(ConvTranspose1d, kernel_size=3, stride=2, padding=1, output_padding=1),
    "transposed 2d": partial(ConvTranspose2d, kernel_size=(3, 2), stride=(2, 3), padding=(1, 0), dilation=(1, 2), bias=False),
    "transposed, groups": partial(ConvTranspose2d, kernel_size=3, groups=2, output_padding=(0, 1), dilation=2),
    "transposed, depthwise": partial(ConvTranspose2d, kernel_size=2, groups=4, stride=2),
    "transposed 3d": partial(ConvTranspose3d, kernel_size=2, stride=2, padding=(0, 1, 1), groups=2),
}
every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(case: str, algebra: Any, dtype: torch.dtype = torch.float64) -> tuple[Any, Tensor]:
    """A layer with a bias that is not zero, and an input of odd sizes."""
    d = ALGEBRAS[algebra].dim
    layer = CASES[case](4 * d, 8 * d, algebra=algebra).to(dtype)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer, torch.randn(3, 4 * d, *(5, 7, 4)[: layer.axes], dtype=dtype, requires_grad=True)


def torchs(layer: Layer, dtype: torch.dtype) -> nn.Module:
    """torch's layer with the same options over as many numbers, each of one value."""
    d = layer.algebra.dim
    options: dict[str, Any] = {"groups": layer.groups, "dilation": layer.dilation, "stride": layer.stride}
    options |= {"padding": layer.padding, "bias": layer.bias is not None}
    if isinstance(layer, ConvNd):
        options["padding_mode"] = layer.padding_mode
    else:
        options["output_padding"] = layer.output_padding
    made: nn.Module = layer.torch_layer(
        layer.in_channels // d, layer.out_channels // d, layer.kernel_size, dtype=dtype, **options
    )
    return made


def written_out(layer: Layer, x: Tensor) -> Tensor:
    """Products of components, each by torch's real layer of one component, whose groups are then groups of numbers."""
    plain = torchs(layer, x.dtype)
    zero = {} if layer.bias is None else {"bias": torch.zeros(layer.out_channels // layer.algebra.dim, dtype=x.dtype)}
    y = multiply(lambda part, w: functional_call(plain, {"weight": w, **zero}, (part,)), layer.weight, x)
    return y if layer.bias is None else y + layer.bias.view(-1, *[1] * layer.axes)


def outcome(y: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [y, *torch.autograd.grad(y.pow(3).mean(), leaves)]


@every_algebra
@every_case
def test_equals_the_product_written_out(algebra: str, case: str) -> None:
    """Outputs, and gradients by input, weight and bias."""
    layer, x = build(case, algebra)
    leaves = (x, *layer.parameters())
    torch.testing.assert_close(outcome(layer(x), *leaves), outcome(written_out(layer, x), *leaves))


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_complex_layers_equal_torchs(case: str, dtype: torch.dtype) -> None:
    """torch's own layer of complex64 or complex128 numbers."""
    layer, x = build(case, "complex", dtype)
    theirs = torchs(layer, torch.complex64 if dtype == torch.float32 else torch.complex128)
    own = {"weight": torch.complex(*layer.weight)}
    if layer.bias is not None:
        own["bias"] = torch.complex(*layer.bias.chunk(2))
    torch.testing.assert_close(layer(x), from_complex(functional_call(theirs, own, (to_complex(x),))), atol=2e-5, rtol=1e-5)


@every_algebra
@every_case
def test_real_twin(algebra: str, case: str) -> None:
    """`as_real` makes torch's layer of the same output, which learns as the layer does, and shares nothing but the bias."""
    layer, x = build(case, algebra)
    real = layer.as_real()
    assert type(real) is layer.torch_layer
    torch.testing.assert_close(real(x), layer(x))
    with torch.no_grad():
        real.weight.zero_()
    assert layer.weight.all()
    assert not layer.requires_grad_(False).as_real().weight.requires_grad


@every_algebra
@every_case
def test_single_samples_and_empty_batches(algebra: str, case: str) -> None:
    layer, x = build(case, algebra)
    y = layer(x)
    if getattr(layer, "padding_mode", "zeros") in ("zeros", "circular"):
        torch.testing.assert_close(layer(x[0]), y[0])
    assert layer(x[:0]).shape == (0, *y.shape[1:])


@every_algebra
@every_case
def test_with_batch_norm(algebra: Any, case: str) -> None:
    """Folded into one real layer, or left as two where that would be mostly zeros; joined in one function, or refused."""
    layer, x = build(case, algebra)
    norm = BatchNormLayer(layer.out_channels, algebra=algebra).double()
    net = nn.Sequential(layer, norm)
    net(x)
    folded = fold_batchnorm(net)
    apart = layer.groups > 1 and algebra != "real"
    assert isinstance(folded[1], BatchNormLayer) == apart  # type: ignore[index]
    torch.testing.assert_close(folded(x), net.eval()(x))
    if not isinstance(layer, ConvNd):
        return
    if apart:
        with pytest.raises(ArgumentError, match=rf"\Aconv.groups={layer.groups}: must be 1 for numbers, .*\Z"):
            ConvBatchNorm(layer, norm)
        return
    fused, pair = ConvBatchNorm(*deepcopy(net.train())), deepcopy(net)
    torch.testing.assert_close(
        outcome(fused(x), x, *fused.parameters()), outcome(pair(x), x, *pair.parameters()), atol=1e-9, rtol=1e-7
    )


@every_algebra
@every_case
def test_a_unit_number_on_the_right_passes(algebra: str, case: str) -> None:
    """(w x) q = w (x q), so without a bias a layer of x q gives y q; its output turns with its input."""
    layer, x = build(case, algebra)
    layer.bias = None
    q = torch.randn(layer.algebra.dim, dtype=torch.float64)
    q /= q.norm()
    torch.testing.assert_close(layer(times(x, q)), times(layer(x), q))


@every_algebra
@every_case
def test_weights_of_many_tasks(algebra: str, case: str) -> None:
    """`vmap` over weights with a leading task axis gives each task's output, and the gradients of all."""
    layer, x = build(case, algebra)
    tasks = {name: torch.randn(2, *p.shape, dtype=p.dtype, requires_grad=True) for name, p in layer.named_parameters()}
    y = vmap(lambda weights: functional_call(layer, weights, (x,)))(tasks)
    each = torch.stack([functional_call(layer, {name: p[t] for name, p in tasks.items()}, (x,)) for t in range(2)])
    torch.testing.assert_close(outcome(y, *tasks.values()), outcome(each, *tasks.values()))


@every_algebra
@pytest.mark.parametrize("case", ["1d, all", "groups", "circular", "3d", "transposed, groups"])
def test_derivatives(algebra: str, case: str) -> None:
    """First and second, by finite differences."""
    d = ALGEBRAS[algebra].dim
    small = CASES[case](4 * d, 4 * d, algebra=algebra).double()
    x = torch.randn(1, 4 * d, *(3, 2, 2)[: small.axes], dtype=torch.float64, requires_grad=True)
    weight = small.weight.detach().requires_grad_()

    def run(x: Tensor, weight: Tensor) -> Tensor:
        y: Tensor = functional_call(small, {"weight": weight}, (x,))
        return y

    assert torch.autograd.gradcheck(run, (x, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, weight), fast_mode=True)


@every_algebra
@pytest.mark.parametrize("case", ["groups", "same", "3d", "depthwise", "transposed, groups", "transposed 3d"])
def test_channels_last(algebra: str, case: str) -> None:
    """Remembered, as by torch's layers: outputs have the format that theirs have, whatever the input's; values stay."""
    layer, x = build(case, algebra)
    form = torch.channels_last if layer.axes == 2 else torch.channels_last_3d
    before = outcome(layer(x), x, layer.weight)
    layer.to(memory_format=form)
    for given in (x, x.detach().contiguous(memory_format=form).requires_grad_()):
        found = outcome(layer(given), given, layer.weight)
        torch.testing.assert_close(found, before)
    real = layer.as_real().to(memory_format=form)
    assert layer(given).is_contiguous(memory_format=form) == real(given).is_contiguous(memory_format=form)
    assert layer.real_weight().is_contiguous(memory_format=form)
    assert layer.as_real().weight.is_contiguous()
    layer.to(memory_format=torch.contiguous_format)
    assert layer(x).is_contiguous()


@every_algebra
@pytest.mark.parametrize("case", ["1d, all", "groups", "same, even", "3d", "transposed, groups"])
def test_half_precision(algebra: str, case: str) -> None:
    layer, x = build(case, algebra)
    half = deepcopy(layer).bfloat16()
    y = half(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), layer(x), atol=0.15, rtol=0.05)


@pytest.mark.parametrize(
    ("algebra", "case"), [("complex", "1d, all"), ("quaternion", "groups"), ("quaternion", "transposed 3d")]
)
def test_compiles_in_one_graph_and_exports(algebra: str, case: str) -> None:
    torch.compiler.reset()
    layer, x = build(case, algebra)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(outcome(compiled(x), x, layer.weight), outcome(layer(x), x, layer.weight))
    exported = torch.export.export(layer.eval(), (x.detach(),)).module()
    torch.testing.assert_close(exported(x.detach()), layer(x.detach()))


def test_quaternion_convolution_of_speechbrain() -> None:
    """The same product; theirs has the channels in the last axis."""
    layer = Conv2d(8, 12, 3, "quaternion", bias=False, padding=1)
    x = torch.randn(2, 8, 6, 5)
    make = peer("speechbrain.nnet.quaternion_networks.q_CNN").QConv2d
    theirs = make(out_channels=3, kernel_size=(3, 3), input_shape=(2, 5, 6, 8), padding_mode="constant", bias=False)
    for name, component in zip("rijk", layer.weight.detach(), strict=True):
        getattr(theirs, f"{name}_weight").data = component
    torch.testing.assert_close(theirs(x.transpose(1, -1)).transpose(1, -1), layer(x))


def test_complex_convolution_of_complexpytorch() -> None:
    """With groups of numbers."""
    layer = Conv2d(8, 12, 3, "complex", bias=False, stride=2, dilation=2, groups=2)
    theirs = peer("complexPyTorch.complexLayers").ComplexConv2d(4, 6, 3, stride=2, dilation=2, groups=2, bias=False)
    theirs.conv_r.weight.data, theirs.conv_i.weight.data = layer.weight.detach()
    x = torch.randn(2, 8, 9, 7)
    torch.testing.assert_close(theirs(to_complex(x)), to_complex(layer(x)))


@pytest.mark.parametrize("size", [(9, 14), (3, 16, 10, 15), (10, 13)], ids=str)
def test_output_size(size: tuple[int, ...]) -> None:
    """Chooses among the sizes that one stride leaves open, as torch's."""
    layer = ConvTranspose2d(8, 16, 3, "complex", stride=(2, 3), padding=1, groups=2)
    x = torch.randn(3, 8, 5, 5)
    torch.testing.assert_close(layer(x, output_size=size), layer.as_real()(x, output_size=list(size)))
    with pytest.raises(ValueError, match=r"output_size must be from \[9, 13\] to \[10, 15\]"):
        layer(x, output_size=(11, 14))


def test_names_and_text() -> None:
    """Options are tuples under torch's names, which the text of a layer shows."""
    layer = Conv2d(8, 16, 3, "quaternion", True, 2, 1, groups=2)
    assert Conv2d(8, 16, np.int64(3)).kernel_size == (3, 3)  # type: ignore[arg-type]
    assert (layer.stride, layer.padding, layer.kernel_size) == ((2, 2), (1, 1), (3, 3))
    assert layer.weight.shape == (4, 4, 1, 3, 3)
    assert "8, 16, kernel_size=(3, 3), algebra=quaternion, bias=True, stride=(2, 2), padding=(1, 1)" in repr(layer)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "groups": (lambda: Conv2d(8, 16, 3, "quaternion", groups=4), "groups=4: must divide the 2 numbers of the input and the 4 "),
    "no groups": (lambda: Conv1d(8, 16, 3, groups=0), "groups=0: must divide"),
    "kernel": (lambda: Conv2d(8, 16, (3, 0)), r"kernel_size=\(3, 0\): must be a whole number of at least 1, or 2 of them"),
    "kernel of three": (lambda: Conv2d(8, 16, (3, 3, 3)), "kernel_size="),
    "stride": (lambda: Conv1d(8, 16, 3, stride=1.5), "stride=1.5: must be a whole number of at least 1"),  # type: ignore[arg-type]
    "padding": (lambda: Conv3d(8, 16, 3, padding=-1), "padding=-1: must be a whole number of at least 0"),
    "padding's name": (lambda: Conv3d(8, 16, 3, padding="sane"), "padding=sane: did you mean same"),  # type: ignore[arg-type]
    "same with stride": (lambda: Conv2d(8, 16, 3, padding="same", stride=(1, 2)), "padding=same: needs stride=1"),
    "dilation": (lambda: ConvTranspose1d(8, 16, 3, dilation=0), "dilation=0: must"),
    "mode": (lambda: Conv2d(8, 16, 3, padding_mode="mirror"), "padding_mode=mirror: allowed: circular"),  # type: ignore[arg-type]
    "output padding": (lambda: ConvTranspose2d(8, 16, 3, output_padding=1), "output_padding=1: must be smaller than"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_in_one_line(what: str) -> None:
    make, text = REFUSED[what]
    with pytest.raises(ArgumentError, match=rf"\A{text}") as error:
        make()
    assert "\n" not in str(error.value)
