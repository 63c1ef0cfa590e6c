"""Fused convolution and batch norm against the two layers one after the other."""

import copy
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hnetcl.algebra import ALGEBRAS
from hnetcl.bn import BATCH, BatchNormLayer, ConvBatchNorm, batchnorm_layers, using_task
from hnetcl.bn.conv_bn import AnyConv
from hnetcl.bn.statistics import STATS
from hnetcl.errors import ArgumentError
from hnetcl.kernels.whitening import WHITENINGS
from hnetcl.layers import Conv2d

every_algebra = pytest.mark.parametrize("algebra", ALGEBRAS)
every_kind = pytest.mark.parametrize(("algebra", "whitening"), list(product(ALGEBRAS, WHITENINGS)))
in_both_modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
assert_close = partial(torch.testing.assert_close, atol=1e-10, rtol=1e-10)
assert_equal = partial(torch.testing.assert_close, atol=0, rtol=0)

CONVS: dict[str, Callable[[], AnyConv]] = {
    "plain": lambda: nn.Conv2d(4, 8, 3),
    "bare": lambda: nn.Conv2d(4, 8, 3, bias=False),
    "pointwise": lambda: nn.Conv2d(4, 8, 1),
    "stride": lambda: nn.Conv2d(4, 8, 3, stride=(2, 1)),
    "padding": lambda: nn.Conv2d(4, 8, 3, padding=(1, 2)),
    "dilation": lambda: nn.Conv2d(4, 8, 2, dilation=(1, 2)),
    "groups": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "all": lambda: nn.Conv2d(4, 8, (3, 2), stride=2, padding=(2, 1), dilation=2, groups=2),
    "same": lambda: nn.Conv2d(4, 8, 3, padding="same", dilation=2),
    "same, even": lambda: nn.Conv2d(4, 8, (2, 4), padding="same"),
    "valid": lambda: nn.Conv2d(4, 8, 3, padding="valid"),
    "reflect": lambda: nn.Conv2d(4, 8, 3, padding=(1, 2), padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(4, 8, 2, padding="same", padding_mode="replicate"),
    "circular": lambda: nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular", stride=2),
    "1d": lambda: nn.Conv1d(4, 8, 3, padding=1),
    "3d": lambda: nn.Conv3d(4, 8, 2, padding=(1, 0, 1), stride=(1, 1, 2)),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(conv: AnyConv, algebra: Any, rows: int = 1, **options: Any) -> ConvBatchNorm:
    """A layer of 8 channels in float64 whose parameters and statistics are nobody's initial values."""
    norm = BatchNormLayer(8, algebra=algebra, **options)
    for _ in range(rows - 1):
        norm.checkpoint_stats()
    layer = ConvBatchNorm(conv, norm).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 2)
        for _ in range(2 * rows):
            norm(torch.randn(9, 8, dtype=torch.float64) + 1, stats_id=rows - 1) if norm.num_stats else None
    return layer


def numbers(algebra: str = "quaternion", bias: bool = True, **options: Any) -> ConvBatchNorm:
    return build(Conv2d(4, 8, 3, algebra, bias=bias, padding=1), algebra, **options)


def pictures(layer: ConvBatchNorm, n: int = 5, side: int = 6) -> Tensor:
    conv = layer.conv
    groups = 1 if isinstance(conv, Conv2d) else conv.groups
    weight = conv.algebra.block_matrix(conv.weight) if isinstance(conv, Conv2d) else conv.weight
    return torch.randn(n, groups * weight.shape[1], *[side] * (weight.ndim - 2), dtype=weight.dtype).requires_grad_()


def pair(layer: ConvBatchNorm, x: Tensor, **given: Any) -> Tensor:
    y: Tensor = layer.norm(layer.conv(x), **given)
    return y


def outcome(y: Tensor, *leaves: Tensor) -> list[Tensor]:
    """y and the gradients of a form that is not linear in it, by those leaves that it depends on."""
    gradients = torch.autograd.grad(y.double().pow(3).mean(), leaves, allow_unused=True)
    return [y.detach(), *(gradient for gradient in gradients if gradient is not None)]


def assert_equals_pair(layer: ConvBatchNorm, x: Tensor, **given: Any) -> None:
    """In output, gradients by x, parameters and given tensors that want them, and buffers afterwards."""
    twin = copy.deepcopy(layer)
    wanted = [value for value in given.values() if isinstance(value, Tensor) and value.requires_grad]
    assert_close(
        outcome(layer(x, **given), x, *layer.parameters(), *wanted),
        outcome(pair(twin, x, **given), x, *twin.parameters(), *wanted),
    )
    assert_close(dict(layer.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, of the pair
@every_kind
@in_both_modes
@pytest.mark.parametrize("name", CONVS)
def test_equals_the_pair(algebra: str, whitening: str, training: bool, name: str) -> None:
    """For every kind of convolution and of whitening."""
    layer = build(CONVS[name](), algebra, whitening=whitening).train(training)
    assert_equals_pair(layer, pictures(layer))


@every_algebra
@in_both_modes
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("affine", [True, False])
def test_convolutions_of_numbers(algebra: str, training: bool, stride: int, affine: bool) -> None:
    """This package's convolution serves as torch's do; the gradient is that of the numbers' weight."""
    layer = build(Conv2d(4, 8, 3, algebra, stride=stride, padding=1), algebra, affine=affine).train(training)
    assert_equals_pair(layer, pictures(layer))


@every_algebra
@in_both_modes
@pytest.mark.parametrize("stats", STATS)
@pytest.mark.parametrize("given", [False, True], ids=["own", "given"])
def test_modes_are_the_layers(algebra: str, training: bool, stats: str, given: bool) -> None:
    """Every mode uses and updates the statistics that the batch-norm layer does."""
    layer = numbers(algebra, stats=stats).train(training)
    tracked = numbers(algebra).norm.get_stats(0)
    passed = dict(zip(("running_mean", "running_var"), tracked, strict=True)) if given else {}
    plain = {name: value.clone() for name, value in passed.items()}
    assert_equals_pair(layer, pictures(layer), **{name: value.requires_grad_(not training) for name, value in passed.items()})
    x = pictures(layer).detach()
    twins = [{name: value.clone() for name, value in plain.items()} for _ in range(2)]
    assert_close(layer(x, **twins[0]), pair(layer, x, **twins[1]))
    assert_close(twins[0], twins[1])


def test_parameters_are_those_of_the_two_layers() -> None:
    """By name, in the state dict and for whoever looks for batch-norm layers."""
    layer = numbers()
    apart = nn.ModuleDict({"conv": layer.conv, "norm": layer.norm})
    assert layer.state_dict().keys() == apart.state_dict().keys()
    assert batchnorm_layers(nn.Sequential(layer)) == {"0.norm": layer.norm}


def test_rows() -> None:
    """`stats_id` and `using_task` choose the row, and training touches that one only."""
    layer = numbers(rows=3)
    for choose in (1, BATCH):
        with using_task(layer, choose):
            assert_equals_pair(layer, pictures(layer))
    assert layer.norm.rows["num_batches_tracked"].tolist() == [0, 1, 6]
    layer.eval()
    for row in range(3):
        assert_equals_pair(layer, pictures(layer), stats_id=row)
    with pytest.raises(ValueError, match="3 rows of statistics and none chosen"):
        layer(pictures(layer))


@every_algebra
@in_both_modes
def test_weights_can_be_given(algebra: str, training: bool) -> None:
    """A hypernetwork's weights, put in by name, are used and get the gradients."""
    layer = numbers(algebra).train(training)
    x, twin = pictures(layer), copy.deepcopy(layer)
    weights = {name: torch.randn_like(value).requires_grad_() for name, value in layer.named_parameters()}
    apart = nn.Sequential(twin.conv, twin.norm)
    names = {"conv": "0", "norm": "1"}
    renamed = {f"{names[room]}.{rest}": v for (room, rest), v in ((name.split("."), v) for name, v in weights.items())}
    y, expected = functional_call(layer, weights, (x,)), functional_call(apart, renamed, (x,))
    assert_close(outcome(y, x, *weights.values()), outcome(expected, x, *weights.values()))


@in_both_modes
def test_the_output_can_be_changed_in_place(training: bool) -> None:
    """As ReLU(inplace=True) does."""
    for algebra in ALGEBRAS:
        layer = numbers(algebra, stats="batch" if training else "tracked").train(training)
        x = pictures(layer)
        first, second = (outcome(F.relu(layer(x), inplace=inplace), x, *layer.parameters()) for inplace in (True, False))
        assert_equal(first, second)


@in_both_modes
@pytest.mark.parametrize("learns", ["conv", "norm", "x"])
def test_only_some_gradients(training: bool, learns: str) -> None:
    """Where some parts are frozen the others get the gradient that they have anyway."""
    layer = numbers(stats="batch" if training else "tracked").train(training)
    x = pictures(layer)
    leaves: dict[str, list[Tensor]] = {"x": [x], "conv": list(layer.conv.parameters()), "norm": list(layer.norm.parameters())}
    expected = outcome(layer(x), *leaves[learns])
    for name, tensors in leaves.items():
        for tensor in tensors:
            tensor.requires_grad_(name == learns)
    assert_equal(outcome(layer(x), *leaves[learns]), expected)


@every_algebra
def test_bias_before_batch_statistics_has_no_gradient(algebra: str) -> None:
    """Exactly zero, and the mean that it moves is noted in the row."""
    layer = numbers(algebra, momentum=1.0)
    x, bias = pictures(layer), layer.conv.bias
    assert bias is not None
    layer(x).pow(3).sum().backward()
    assert bias.grad is not None
    assert not bias.grad.any()
    assert_close(layer.norm.get_stats(0)[0], layer.conv(x).detach().mean((0, 2, 3)))


@every_algebra
@in_both_modes
@pytest.mark.parametrize("stats", ["tracked", "frozen"])
def test_saves_half_of_the_pair(algebra: Any, training: bool, stats: Any) -> None:
    """The convolution's input and small matrices."""
    layer = ConvBatchNorm(Conv2d(64, 64, 3, algebra, padding=1), BatchNormLayer(64, algebra=algebra, stats=stats)).train(
        training
    )
    x = torch.randn(4, 64, 64, 64, requires_grad=True)

    def saved(function: Callable[[Tensor], Tensor]) -> int:
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = function(x)
        assert y.requires_grad
        return sum(storages.values())

    assert x.nbytes <= saved(layer) <= 0.55 * saved(partial(pair, layer))


@every_algebra
@in_both_modes
def test_second_derivatives_are_refused(algebra: str, training: bool) -> None:
    """Whether they come through the output's gradient or through saved tensors; first ones are told apart."""
    layer = numbers(algebra).train(training)
    x = pictures(layer)
    for y in (layer(x).pow(3).sum(), layer(x).sum()):
        (gradient,) = torch.autograd.grad(y, layer.conv.weight, create_graph=True)
        with pytest.raises(RuntimeError, match=r"\Afused .* no second derivative: call the two layers one after the other\Z"):
            gradient.sum().backward()


@in_both_modes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("halved", ["layer", "conv"])
def test_half_precision(training: bool, dtype: torch.dtype, halved: str) -> None:
    """Output and gradients have the dtypes of the pair's and are near the exact ones."""
    for algebra in ALGEBRAS:
        exact = numbers(algebra).float().train(training)
        layer = copy.deepcopy(exact)
        (layer if halved == "layer" else layer.conv).to(dtype)
        x = torch.randn(5, 4, 6, 6).to(dtype).requires_grad_()
        results, pairs = outcome(layer(x), x, *layer.parameters()), outcome(pair(layer, x), x, *layer.parameters())
        assert [r.dtype for r in results] == [p.dtype for p in pairs]
        wide = x.detach().float().requires_grad_()
        for result, expected in zip(results, outcome(exact(wide), wide, *exact.parameters()), strict=True):
            scale = float(expected.abs().max()) + 1e-3
            torch.testing.assert_close(result.float() / scale, expected / scale, rtol=0, atol=0.1)


@every_algebra
@in_both_modes
def test_autocast(algebra: str, training: bool) -> None:
    """Casts what it casts for the pair, though backward runs outside of it."""
    layer = numbers(algebra, bias=not training).float().train(training)  # of bias the pair's gradient would be noise
    x = torch.randn(5, 4, 6, 6).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = layer(x), pair(layer, x)
    assert y.dtype == expected.dtype == torch.bfloat16
    first, second = (outcome(each, x, *layer.parameters()) for each in (y, expected))
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype
        scale = float(b.abs().max()) + 1e-3
        torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=0.05)


@every_algebra
def test_memory_format_does_not_matter(algebra: str) -> None:
    """Channels last give the same numbers."""
    layer = numbers(algebra, stats="batch")
    x = pictures(layer)
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    assert_close(outcome(layer(last), last, *layer.parameters()), outcome(layer(x), x, *layer.parameters()))


@in_both_modes
def test_gradients_can_be_mapped(training: bool) -> None:
    """`vmap` of `grad` over weights, on one input, equals a loop."""
    for algebra in ALGEBRAS:
        layer = numbers(algebra, stats="batch" if training else "tracked").train(training)
        x = pictures(layer).detach()

        def loss(weights: dict[str, Tensor], layer: ConvBatchNorm = layer, x: Tensor = x) -> Tensor:
            y: Tensor = functional_call(layer, weights, (x,))
            return y.pow(3).mean()

        each = [{name: torch.randn_like(value) for name, value in layer.named_parameters()} for _ in range(3)]
        stacked = {name: torch.stack([weights[name] for weights in each]) for name in each[0]}
        mapped = torch.func.vmap(torch.func.grad(loss))(stacked)
        loop = [torch.func.grad(loss)(weights) for weights in each]
        assert_close(mapped, {name: torch.stack([weights[name] for weights in loop]) for name in mapped})


class _Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (nn.Conv2d(4, 6, 3), "norm.num_features=8: must be 6, the convolution's output channels"),
        (Conv2d(4, 4, 3, "quaternion"), "norm.num_features=8: must be 4, "),
        (_Doubled(4, 8, 3), "conv=_Doubled: must be a convolution of torch or hnetcl.layers with its own forward"),
        (nn.ConvTranspose2d(4, 8, 3), "conv=ConvTranspose2d: must be "),
        (nn.Linear(4, 8), "conv=Linear: must be "),
        (nn.utils.spectral_norm(nn.Conv2d(4, 8, 3)), "conv=Conv2d: must have no hooks, for they would not run"),
    ],
    ids=repr,
)
def test_constructor_refuses(conv: Any, message: str) -> None:
    """What is no plain convolution, works by hooks, or is not as wide as the batch norm."""
    with pytest.raises(ArgumentError, match=rf"\A{message}.*\Z"):
        ConvBatchNorm(conv, BatchNormLayer(8))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 6, 6), r"expected x of shape \[N, in, ...\] with 4 axes, got \(4, 6, 6\)"),
        ((2, 4, 2, 6), r"a kernel \(3, 3\) does not fit into x of shape \(2, 4, 2, 6\)"),
        ((1, 4, 3, 3), r"more than one value per channel, got x of shape \(1, 8, 1, 1\)"),
    ],
)
def test_forward_refuses(shape: tuple[int, ...], message: str) -> None:
    """Inputs without a batch axis, smaller than the kernel, or with one value per channel."""
    with pytest.raises(ValueError, match=message):
        ConvBatchNorm(nn.Conv2d(4, 8, 3), BatchNormLayer(8))(torch.zeros(shape))
