"""What sees a number as a whole: activations, pooling, dropout, and the ways from real channels to numbers and back."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from numbers_reference import from_complex, times, to_complex
from peers import peer
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call, vmap

from hnetcl.algebra import ALGEBRAS, QUATERNION
from hnetcl.bn import BatchNormLayer, fold_batchnorm
from hnetcl.errors import ArgumentError
from hnetcl.layers import (
    AdaptiveModulusMaxPool,
    Cardioid,
    Conv2d,
    Dropout,
    ModReLU,
    ModulusMaxPool,
    Tanh,
    ToNumbers,
    ToReal,
    ZReLU,
)

every_algebra = pytest.mark.parametrize("algebra", ALGEBRAS)
of_numbers = pytest.mark.parametrize("algebra", ["complex", "quaternion"])
ACTIVATIONS: dict[str, Callable[[str], Any]] = {
    "modrelu": partial(ModReLU, 8),
    "zrelu": ZReLU,
    "cardioid": Cardioid,
    "tanh": Tanh,
}
DEFINED = [(name, algebra) for name in ACTIVATIONS for algebra in ALGEBRAS if name != "zrelu" or algebra == "complex"]
every_activation = pytest.mark.parametrize(("name", "algebra"), DEFINED)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def activation(name: str, algebra: str) -> Any:
    layer = ACTIVATIONS[name](algebra).double()
    if name == "modrelu":
        nn.init.normal_(layer.bias)
    return layer


def samples(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def modulus(x: Tensor, algebra: str) -> Tensor:
    found: Tensor = x.unflatten(1, (ALGEBRAS[algebra].dim, -1)).square().sum(1).sqrt()
    return found


COMPLEX_FORMULAS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "modrelu": lambda z, layer: (z.abs() + layer.bias.view(-1, 1, 1)).relu() * torch.exp(1j * z.angle()),
    "zrelu": lambda z, _: torch.where((z.angle() >= 0) & (z.angle() <= math.pi / 2), z, 0),
    "cardioid": lambda z, _: (1 + z.angle().cos()) * z / 2,
    "tanh": lambda z, _: z.tanh(),
}


@pytest.mark.parametrize("name", COMPLEX_FORMULAS)
def test_complex_activations(name: str) -> None:
    """As the papers write them, of torch's complex numbers; gradients too."""
    layer, x = activation(name, "complex"), samples(3, 8, 5, 4)
    y, expected = layer(x), from_complex(COMPLEX_FORMULAS[name](to_complex(x), layer))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(*(torch.autograd.grad(z.pow(3).sum(), x)[0] for z in (y, expected)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cardioid", torch.relu), ("tanh", torch.tanh), ("modrelu", lambda x: F.softshrink(x, 0.5))],
)
def test_real_activations(name: str, expected: Callable[[Tensor], Tensor]) -> None:
    layer, x = activation(name, "real"), samples(3, 8, 5)
    if name == "modrelu":
        nn.init.constant_(layer.bias, -0.5)
    torch.testing.assert_close(layer(x), expected(x))


def test_tanh_of_a_quaternion_is_that_of_its_matrix() -> None:
    """The power series, which a quaternion's matrix knows: tanh Z = (exp 2Z - 1) (exp 2Z + 1)^-1."""
    q = samples(50, 4) / 2
    matrices = vmap(lambda one: QUATERNION.block_matrix(one[:, None, None]))(q)
    exp, one = torch.matrix_exp(2 * matrices), torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(Tanh("quaternion")(q), torch.linalg.solve(exp + one, exp - one)[..., 0])


@every_activation
def test_gradients_of_activations(name: str, algebra: str) -> None:
    layer, x = activation(name, algebra), samples(2, 8, 3)
    assert torch.autograd.gradcheck(layer, x)
    if name == "tanh":
        assert torch.autograd.gradgradcheck(layer, x)


@every_activation
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_numbers_of_no_size_and_of_large(name: str, algebra: str, dtype: torch.dtype) -> None:
    """At zero, and so near it that squares underflow, and far out: no value and no derivative is nan or infinite."""
    layer = activation(name, algebra).to(dtype)
    least = torch.finfo(dtype).tiny
    for size in (0.0, least, least**0.51, least**0.5, least**0.4, 1e4):
        x = torch.full((2, 8, 3), size, dtype=dtype)
        x[:, 1::2] = 0
        x.requires_grad_()
        y = layer(x)
        leaves = [x, *layer.parameters()]
        assert y.dtype == dtype
        assert all(value.isfinite().all() for value in (y, *torch.autograd.grad(y.sum(), leaves)))


@every_activation
def test_second_derivatives_at_zero(name: str, algebra: str) -> None:
    """As Fisher information and meta-learning take them: none is nan."""
    layer = activation(name, algebra)
    zero = torch.zeros(1, 8, dtype=torch.float64, requires_grad=True)
    for each in (layer, ToReal(algebra, "modulus")):
        assert hessian(lambda x, each=each: each(x).sum(), zero).isfinite().all()
    if name == "tanh":
        assert torch.autograd.gradgradcheck(layer, zero)


def test_modrelu_at_zero() -> None:
    """It starts as the identity, at zero too; below the threshold nothing moves."""
    layer, x = ModReLU(2, "complex"), torch.zeros(1, 2, requires_grad=True)
    for bias, slope in ((0.0, 1.0), (-0.1, 0.0)):
        nn.init.constant_(layer.bias, bias)
        (gradient,) = torch.autograd.grad(layer(x).sum(), x)
        assert gradient.tolist() == [[slope, slope]]


@of_numbers
def test_modrelu_turns_with_its_input(algebra: str) -> None:
    """And so do pooling by modulus, and the modulus itself not at all."""
    layer, x = activation("modrelu", algebra), samples(3, 8, 4, 4)
    q = F.normalize(torch.randn(ALGEBRAS[algebra].dim, dtype=torch.float64), dim=0)
    for each in (layer, ModulusMaxPool(2, algebra), AdaptiveModulusMaxPool((1, 3), algebra)):
        torch.testing.assert_close(each(times(x, q)), times(each(x), q))
    torch.testing.assert_close(ToReal(algebra, "modulus")(times(x, q)), modulus(x, algebra))


@every_activation
def test_activations_of_many_tasks(name: str, algebra: str) -> None:
    layer, x = activation(name, algebra), samples(3, 8, 4)
    tasks = {key: torch.randn(5, *p.shape, dtype=p.dtype) for key, p in layer.named_parameters()}
    many = samples(5, 3, 8, 4)
    y = vmap(lambda weights, x: functional_call(layer, weights, (x,)))(tasks, many)
    torch.testing.assert_close(y[2], functional_call(layer, {key: p[2] for key, p in tasks.items()}, (many[2],)))
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ZReLU("quaternion"), "algebra=quaternion: ZReLU is defined for complex numbers only"),
        (lambda: ZReLU("real"), "algebra=real: ZReLU is defined for complex numbers only"),
        (lambda: ModReLU(6, "quaternion"), "num_features=6: must be a positive multiple of 4"),
        (lambda: Tanh("octonion"), "algebra=octonion: allowed: complex"),
        (lambda: Dropout(1.5, "real"), "p=1.5: must be from 0 to 1"),
        (lambda: ToNumbers(3, "complex", "zeros"), "imaginary=zeros: did you mean zero"),  # type: ignore[arg-type]
        (lambda: ToNumbers(3, "complex", norm=nn.BatchNorm2d), "norm=.*: is used where imaginary=learned"),
        (lambda: ToReal("complex", "abs"), "what=abs: allowed: components, modulus, real"),  # type: ignore[arg-type]
        (lambda: ModulusMaxPool(0, "complex"), "kernel_size=0: must be"),
        (lambda: AdaptiveModulusMaxPool((0, None), "complex"), r"output_size=\[0\]: must be"),
        (lambda: ModulusMaxPool((4, 2), "complex", padding=2), "padding=2: must be at most half of the kernel"),
        (lambda: ModulusMaxPool(2, "complex", padding=2), "padding=2: must be at most half of the kernel"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_in_one_line(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=rf"\A{text}"):
        make()


POOLS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "1d": ({"kernel_size": 3}, (7,)),
    "2d": ({"kernel_size": 2}, (5, 7)),
    "2d, all": ({"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "ceil_mode": True}, (6, 7)),
    "3d": ({"kernel_size": (1, 2, 2), "stride": 2}, (3, 4, 5)),
}


@every_algebra
@pytest.mark.parametrize("name", POOLS)
def test_the_largest_number_of_a_window_wins_whole(algebra: str, name: str) -> None:
    """Its modulus is torch's maximum of the moduli; all components come from one place; gradients go there and nowhere else."""
    options, space = POOLS[name]
    d, axes = ALGEBRAS[algebra].dim, len(space)
    x = samples(2, 3 * d, *space)
    y = ModulusMaxPool(algebra=algebra, **options)(x)
    pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[axes - 1]
    torch.testing.assert_close(modulus(y, algebra), pool(**options)(modulus(x, algebra)))
    there = x.unflatten(1, (d, 3)).flatten(3).movedim(1, -1)  # [N, Q, places, d]
    found = y.unflatten(1, (d, 3)).flatten(3).movedim(1, -1)
    assert (found.unsqueeze(3) == there.unsqueeze(2)).all(-1).any(-1).all()
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.sum() == y.numel()
    pooling = ModulusMaxPool(algebra=algebra, **options)
    assert torch.autograd.gradcheck(pooling, x, fast_mode=True)
    tasks = samples(4, *x.shape)
    torch.testing.assert_close(vmap(pooling)(tasks), torch.stack([pooling(each) for each in tasks]))


@every_algebra
@pytest.mark.parametrize("size", [1, (2, None), (3, 2)], ids=str)
def test_adaptive_pooling(algebra: str, size: Any) -> None:
    x = samples(2, 4, 5, 7)
    pool = AdaptiveModulusMaxPool(size, algebra)
    y = pool(x)
    torch.testing.assert_close(vmap(pool)(x.unsqueeze(1)).squeeze(1), y)
    torch.testing.assert_close(modulus(y, algebra), F.adaptive_max_pool2d(modulus(x, algebra), size))


def test_pooling_needs_axes() -> None:
    for pool in (ModulusMaxPool(2, "complex"), AdaptiveModulusMaxPool(2, "complex")):
        with pytest.raises(ValueError, match=r"with one to three axes in S, got \(2, 4\)"):
            pool(torch.zeros(2, 4))


def test_pooling_beside_complexpytorch() -> None:
    functions = peer("complexPyTorch.complexFunctions")
    x = torch.randn(2, 6, 8, 8)
    theirs = functions.complex_max_pool2d(to_complex(x), 2)
    torch.testing.assert_close(ModulusMaxPool(2, "complex")(x), from_complex(theirs))


def test_pooling_of_half_precision_and_of_channels_last() -> None:
    """Moduli that half precision can't square are told apart, and the format of the input stays."""
    x = torch.tensor([1e-4, 2e-4, 300.0, 400.0], dtype=torch.float16).expand(1, 2, 4)
    assert ModulusMaxPool(2, "complex")(x).tolist() == [[x[0, 0, 1::2].tolist()] * 2]
    last = samples(2, 8, 5, 7).contiguous(memory_format=torch.channels_last)
    for pool in (ModulusMaxPool(2, "quaternion"), AdaptiveModulusMaxPool(2, "quaternion")):
        assert pool(last).is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(pool(last), pool(last.contiguous()))


@every_algebra
@pytest.mark.parametrize("shape", [(500, 8), (50, 8, 9), (20, 8, 5, 6)], ids=str)
def test_dropout_takes_whole_numbers(algebra: str, shape: tuple[int, ...]) -> None:
    """All components of a number go together, each number by itself; the mean stays, evaluation does nothing."""
    layer, d = Dropout(0.4, algebra), ALGEBRAS[algebra].dim
    y = layer(torch.ones(shape))
    kept = y.unflatten(1, (d, -1))
    assert (kept == kept[:, :1]).all()
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert y.mean().item() == pytest.approx(1, abs=0.15)
    assert len({tuple(row) for row in kept[:, 0].flatten(1).tolist()}) > 1
    x = torch.randn(shape)
    assert layer.eval()(x) is x
    assert not Dropout(1.0, algebra)(x).any()
    tasks = vmap(layer.train(), randomness="different")(torch.ones(2, *shape))
    assert not torch.equal(*tasks)


@every_algebra
def test_dropout_of_whole_channels(algebra: str) -> None:
    """At all places of a sample together."""
    y = Dropout(0.5, algebra, whole_channels=True)(torch.ones(40, 8, 3, 5)).unflatten(1, (ALGEBRAS[algebra].dim, -1))
    assert (y == y[:, :1, :, :1, :1]).all()
    assert 0.8 < y.mean() < 1.2


@every_algebra
@pytest.mark.parametrize("imaginary", ["zero", "copied", "learned"])
def test_real_input_becomes_real_parts(algebra: str, imaginary: Any) -> None:
    d = ALGEBRAS[algebra].dim
    layer, x = ToNumbers(3, algebra, imaginary), torch.randn(4, 3, 6, 5)
    y = layer(x)
    assert y.shape == (4, 3 * d, 6, 5)
    assert torch.equal(ToReal(algebra)(y), x)
    parts = y.unflatten(1, (d, -1))[:, 1:]
    if imaginary == "zero":
        assert not parts.any()
    elif imaginary == "copied":
        assert (parts == x.unsqueeze(1)).all()
    elif d > 1:
        y.sum().backward()
        assert all(p.grad is not None for p in layer.parameters())
        assert len(list(layer.parameters())) == 6


@of_numbers
def test_learned_imaginary_parts_have_the_norm_that_is_given(algebra: str) -> None:
    """Real batch norm with rows; the whole can be traced, and folded."""
    layer = ToNumbers(3, algebra, "learned", norm=BatchNormLayer)
    net, x = nn.Sequential(layer, Conv2d(3 * ALGEBRAS[algebra].dim, 8, 3, algebra)), torch.randn(4, 3, 6, 5)
    net(x)
    folded = fold_batchnorm(net)
    assert len([each for each in folded.modules() if isinstance(each, BatchNormLayer)]) == 1
    torch.testing.assert_close(folded(x), net.eval()(x), atol=1e-5, rtol=1e-5)


def test_complex_input_is_viewed() -> None:
    """Of complex dtype, with d = 2: a layer of numbers behind it is torch's complex layer."""
    z = torch.randn(2, 3, 6, 5, dtype=torch.complex64)
    layer, conv = ToNumbers(3, "complex"), Conv2d(6, 8, 3, "complex", bias=False)
    assert torch.equal(layer(z), from_complex(z))
    torch.testing.assert_close(to_complex(conv(layer(z))), F.conv2d(z, torch.complex(*conv.weight)))
    for algebra in ("real", "quaternion"):
        with pytest.raises(ValueError, match="complex x is taken where algebra=complex"):
            ToNumbers(3, algebra)(z)
    with pytest.raises(ValueError, match=r"expected x of shape \[N, 2, ...\], got \(2, 3, 6, 5\)"):
        ToNumbers(2, "complex")(z)


@every_algebra
def test_read_out(algebra: str) -> None:
    """Real parts, moduli with a derivative of 0 at 0, or all components."""
    x = samples(2, 8, 3)
    assert torch.equal(ToReal(algebra, "real")(x), x[:, : 8 // ALGEBRAS[algebra].dim])
    torch.testing.assert_close(ToReal(algebra, "modulus")(x), modulus(x, algebra))
    assert torch.equal(ToReal(algebra, "components")(x), x)
    zero = torch.zeros(1, 8, requires_grad=True)
    assert not torch.autograd.grad(ToReal(algebra, "modulus")(zero).sum(), zero)[0].any()


@every_algebra
def test_torchs_activations_and_pools_work_by_component(algebra: str) -> None:
    """Channels are components, so these need no layer of ours."""
    x = torch.randn(2, 8, 6, 6)
    components = x.unflatten(1, (ALGEBRAS[algebra].dim, -1))
    for layer in (nn.GELU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.MaxPool2d(2)):
        each = [layer(component) for component in components.unbind(1)]
        torch.testing.assert_close(layer(x), torch.cat(each, 1))


def test_modrelu_broadcasts_no_single_number_and_numbers_are_made_of_whole_channels() -> None:
    for d, algebra in ((1, "real"), (2, "complex"), (4, "quaternion")):
        with pytest.raises(RuntimeError, match="multiply up"):
            ModReLU(8, algebra)(torch.randn(2, d, 3))
    wrong: list[Any] = [0, -1, 2.5]
    for channels in wrong:
        with pytest.raises(ArgumentError, match="in_channels"):
            ToNumbers(channels, "complex")
