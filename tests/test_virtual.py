"""The laws of `VirtualBatchNormLayer`, for every algebra."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hnetcl.algebra import ALGEBRAS
from hnetcl.bn import BATCH, BatchNormLayer, VirtualBatchNormLayer, norm_layers, reference_pass, using_task
from hnetcl.errors import ArgumentError
from hnetcl.kernels import reference
from hnetcl.kernels.whitening import WHITENINGS

every_algebra = pytest.mark.parametrize("algebra", ALGEBRAS)
every_kind = pytest.mark.parametrize(("algebra", "whitening"), list(product(ALGEBRAS, WHITENINGS)))
generated = settings(deadline=None, max_examples=12, derandomize=True, database=None)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 3), st.lists(st.integers(1, 4), max_size=3))  # N, Q, S
assert_equal = partial(torch.testing.assert_close, atol=0, rtol=0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def samples(*shape: int) -> Tensor:
    """Samples [N, C, *S] whose channels are correlated, off centre and of different scales."""
    mixing = torch.randn(shape[1], shape[1], dtype=torch.float64)
    return torch.einsum("cd,nd...->nc...", mixing, torch.randn(shape, dtype=torch.float64)) + 3


def build(num_features: int, algebra: Any, rows: int = 1, x_ref: Tensor | None = None, **options: Any) -> VirtualBatchNormLayer:
    """A layer with random Gamma and beta, and where `x_ref` is given with that as the reference of every row."""
    layer = VirtualBatchNormLayer(num_features, algebra=algebra, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    for _ in range(rows - 1):
        layer.checkpoint_stats()
    if x_ref is not None:
        for row in range(rows):
            collect(layer, x_ref, stats_id=row)
    return layer


def collect(module: nn.Module, x_ref: Tensor, **options: Any) -> Tensor:
    with reference_pass(module):
        y: Tensor = module(x_ref, **options)
    return y


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.detach().clone() for name, buffer in module.named_buffers()}


def raw_moments(x: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """E x [Q, d] and E x x^T [Q, d, d]; the components of number k are the channels k, k + Q, ..."""
    numbers = x.transpose(0, 1).reshape(d, x.shape[1] // d, -1)
    return numbers.mean(2).T, torch.einsum("aqm,bqm->qab", numbers, numbers) / numbers.shape[2]


def by_definition(layer: VirtualBatchNormLayer, x: Tensor, x_ref: Tensor) -> Tensor:
    """Each sample normalized by the weighted moments, about zero, of the reference and the sample."""
    d, share = layer.algebra.dim, 1 / (len(x_ref) + 1)
    gamma, out = layer.gamma(), []
    for sample in x.split(1):
        own, ref = raw_moments(sample, d), raw_moments(x_ref, d)
        mean, second = (torch.lerp(r, o, share) for r, o in zip(ref, own, strict=True))
        cov = second - mean.unsqueeze(2) * mean.unsqueeze(1)
        options: dict[str, Any] = {"d": d, "eps": layer.eps, "whitening": layer.whitening}
        out.append(reference.normalize(sample, mean.T.reshape(-1), cov, gamma, layer.bias, **options))
    return torch.cat(out)


@every_kind
@pytest.mark.parametrize("affine", [True, False])
@generated
@given(shape=shapes, n=st.integers(2, 6), positions=st.integers(1, 3))
def test_equals_the_definition(
    algebra: str, whitening: str, affine: bool, shape: tuple[int, int, list[int]], n: int, positions: int
) -> None:
    """Output and gradients are those of the mixed moments written down plainly, whatever the reference's size."""
    d, (count, q, space) = ALGEBRAS[algebra].dim, shape
    mix = samples(count + n, d * q, 8)
    x = mix[:count].mean(2)[(..., *[None] * len(space))] + torch.randn(count, d * q, *space, dtype=torch.float64)
    x_ref = mix[count:, :, :positions]
    layer = build(d * q, algebra, x_ref=x_ref, whitening=whitening, affine=affine, eps=0.1)
    inputs = [x.requires_grad_(), *layer.parameters()]
    y, expected = layer(x), by_definition(layer, x, x_ref)
    torch.testing.assert_close(y, expected, atol=1e-9, rtol=1e-9)
    form = torch.randn_like(y)
    got = torch.autograd.grad((y * form).sum(), inputs)
    torch.testing.assert_close(got, torch.autograd.grad((expected * form).sum(), inputs), atol=1e-8, rtol=1e-8)


@every_kind
@generated
@given(shape=shapes)
def test_samples_are_independent(algebra: str, whitening: str, shape: tuple[int, int, list[int]]) -> None:
    """A sample's output is the same alone and among others, in training and in evaluation."""
    d, (n, q, space) = ALGEBRAS[algebra].dim, shape
    layer, x = build(d * q, algebra, x_ref=samples(6, d * q), whitening=whitening), samples(n, d * q, *space)
    y = layer(x)
    torch.testing.assert_close(torch.cat([layer(sample) for sample in x.split(1)]), y, atol=1e-10, rtol=1e-10)
    assert_equal(layer.eval()(x), y)


@every_kind
def test_a_large_reference_leaves_nothing_to_the_sample(algebra: Any, whitening: Any) -> None:
    """For n -> infinity the layer is `BatchNormLayer` in evaluation with the reference's biased statistics."""
    layer, x = build(8, algebra, x_ref=samples(6, 8, 3), whitening=whitening), samples(5, 8, 3, 2)
    layer.reference_count.fill_(10**15)
    mean, var = layer.get_stats(0)
    plain = BatchNormLayer(8, algebra=algebra, whitening=whitening).double().eval()
    expected = plain(x, running_mean=mean, running_var=var, weight=layer.weight, bias=layer.bias)
    torch.testing.assert_close(layer(x), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("algebra", "whitening"), list(product(ALGEBRAS, ("zca", "cholesky"))))
@generated
@given(shape=shapes)
def test_whitens_the_reference(algebra: str, whitening: str, shape: tuple[int, int, list[int]]) -> None:
    """Without affine the reference comes out with mean 0 and eigenvalues lam / (lam + eps); its own moments are kept."""
    d, (n, q, space) = ALGEBRAS[algebra].dim, shape
    layer, x = build(d * q, algebra, whitening=whitening, affine=False, eps=0.1), samples(n + 1, d * q, *space)
    mean, second = raw_moments(collect(layer, x), d)
    own_mean, own_second = raw_moments(x, d)
    own_cov = own_second - own_mean.unsqueeze(2) * own_mean.unsqueeze(1)
    lam = torch.linalg.eigvalsh(own_cov).clamp_min(0)
    torch.testing.assert_close(mean, torch.zeros_like(mean))
    torch.testing.assert_close(torch.linalg.eigvalsh(second), lam / (lam + 0.1))
    kept_mean, kept_cov = layer.get_stats(0)
    torch.testing.assert_close((kept_mean, kept_cov.reshape(q, d, d)), (own_mean.T.reshape(-1), own_cov))
    assert layer.reference_count.tolist() == [n + 1]


@every_kind
@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3), (2, 4, 2, 2)], ids=str)
def test_gradients(algebra: str, whitening: str, shape: tuple[int, ...]) -> None:
    """Gradients of x, Gamma and beta pass gradcheck: they reach the sample's own statistics."""
    layer = build(4, algebra, x_ref=samples(3, 4, 2), whitening=whitening, eps=0.1)
    values = [value.detach().requires_grad_() for value in (samples(*shape), *layer.parameters())]
    assert torch.autograd.gradcheck(lambda x, weight, bias: layer(x, weight=weight, bias=bias), values)


@every_algebra
def test_large_means_do_not_cancel(algebra: str) -> None:
    """In float32 a mean of 1e4 standard deviations costs the output no more than the rounding of x does."""
    x, x_ref = ((torch.randn(5, 8, 4, 4) + 1e4) for _ in range(2))
    double = build(8, algebra, x_ref=x_ref.double())
    single = build(8, algebra).float()
    single.load_state_dict({**double.state_dict(), **buffers(single)})
    collect(single, x_ref)
    torch.testing.assert_close(single(x).double(), double(x.double()), atol=5e-3, rtol=5e-3)


@every_algebra
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("whole", [True, False], ids=["layer too", "input only"])
def test_half_precision(algebra: str, dtype: torch.dtype, whole: bool) -> None:
    """Half-precision input gives the output of float32 up to its rounding, in its own dtype, with finite gradients."""
    x_ref, x = torch.randn(9, 8, 3).to(dtype), torch.randn(4, 8, 3).to(dtype)
    layer = build(8, algebra).float()
    collect(layer, x_ref.float())
    expected = layer(x.float())
    layer = layer.to(dtype) if whole else layer
    collect(layer, x_ref)
    y = layer(x.requires_grad_())
    y.sum().backward()
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, atol=0.1, rtol=0.1)
    assert x.grad is not None
    assert x.grad.isfinite().all()


@every_algebra
def test_autocast_leaves_the_statistics_alone(algebra: str) -> None:
    """Under autocast a float32 input gives what it gives without."""
    x_ref, x = torch.randn(9, 8, 3), torch.randn(4, 8, 3)
    layer = build(8, algebra).float()
    collect(layer, x_ref)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    torch.testing.assert_close(y, layer(x), atol=1e-6, rtol=1e-6)


@every_algebra
@pytest.mark.parametrize("choose", [int, torch.tensor], ids=["int", "tensor"])
def test_a_reference_touches_the_chosen_row_only(algebra: str, choose: Callable[[int], Any]) -> None:
    """Of seven rows an int or a 0-dim tensor collects and reads one, as if it were a layer of its own; calls write nothing."""
    layer, alone = build(8, algebra, rows=7), build(8, algebra)
    alone.load_state_dict({**layer.state_dict(), **buffers(alone)})
    before, x_ref, x = buffers(layer), samples(9, 8, 2), samples(4, 8, 2)
    assert_equal(collect(layer, x_ref, stats_id=choose(4)), collect(alone, x_ref))
    assert_equal(layer(x, stats_id=choose(4)), alone(x))
    for name, value in alone.named_buffers():
        assert_equal(layer.get_buffer(name), before[name].index_copy(0, torch.tensor([4]), value))


@every_algebra
@pytest.mark.parametrize(("saved", "built"), [(7, 1), (1, 7)])
def test_state_dicts_bring_their_rows(algebra: str, saved: int, built: int) -> None:
    """References are saved, and a layer takes as many rows as the state has; those without a reference stay so."""
    source, target = build(8, algebra, rows=saved, x_ref=samples(9, 8, 2)), build(8, algebra, built, samples(9, 8))
    source.checkpoint_stats()
    target.load_state_dict(source.state_dict())
    assert target.num_stats == saved + 1
    assert_equal(buffers(target), buffers(source))
    x = samples(4, 8)
    assert_equal(target(x, stats_id=saved - 1), source(x, stats_id=saved - 1))
    with pytest.raises(ValueError, match=f"row {saved} has no reference batch"):
        target(x, stats_id=saved)


@every_algebra
def test_new_rows_follow_the_newest(algebra: str) -> None:
    """A new row has no reference and takes the device and dtype of the rows before it, which stay as they are."""
    layer = build(8, algebra, x_ref=samples(9, 8))
    before = layer.get_stats(0)
    layer.checkpoint_stats()
    assert_equal(layer.get_stats(0), before)
    assert layer.reference_count.tolist() == [9, 0]
    layer.to("meta").checkpoint_stats()
    kinds = {(buffer.device.type, buffer.dtype) for buffer in layer.buffers()}
    assert kinds == {("meta", torch.float64), ("meta", torch.int64)}


def test_a_net_collects_its_references_in_one_pass() -> None:
    """`reference_pass` and `using_task` reach every layer of a net, and what was is restored, even by an exception."""
    layers = [build(8, algebra, rows=3) for algebra in ("real", "quaternion")]
    net, x_ref, x = nn.Sequential(layers[0], nn.Sequential(nn.ReLU(), layers[1])), samples(9, 8, 2), samples(4, 8, 2)
    with using_task(net, 1), reference_pass(net):
        y_ref = net(x_ref)
    hidden = collect(layers[0], x_ref, stats_id=2).relu()
    assert_equal(y_ref, collect(layers[1], hidden, stats_id=2))
    assert list(norm_layers(net).values()) == layers
    for layer in layers:
        assert layer.reference_count.tolist() == [0, 9, 9]
        assert_equal(layer.get_stats(1), layer.get_stats(2))
    with using_task(net, 1):
        assert_equal(net(x), layers[1](layers[0](x, stats_id=2).relu(), stats_id=2))
    with pytest.raises(ValueError, match="none chosen"):
        collect(net, x_ref)
    assert not any(layer.collecting for layer in layers)


@every_algebra
def test_buffers_carry_no_graph(algebra: str) -> None:
    """A reference may be collected anew between a forward and its backward pass, and leaves no graph on a buffer."""
    layer, x = build(8, algebra, x_ref=samples(9, 8)), samples(4, 8).requires_grad_()
    (expected,) = torch.autograd.grad(layer(x).pow(3).sum(), x)
    y = layer(x)
    collect(layer, samples(9, 8).requires_grad_())
    assert not any(buffer.requires_grad for buffer in layer.buffers())
    assert_equal(torch.autograd.grad(y.pow(3).sum(), x)[0], expected)


@every_algebra
def test_batch_in_place_of_a_row(algebra: Any) -> None:
    """Within `using_task(net, BATCH)` the batch's own statistics are used, no reference is needed and none is written."""
    layer, x = build(8, algebra, rows=2), samples(9, 8, 2)
    before = buffers(layer)
    with using_task(layer, BATCH):
        assert_equal(layer(x), BatchNormLayer(8, algebra=algebra).double()(x, weight=layer.weight, bias=layer.bias))
    assert_equal(buffers(layer), before)


@every_algebra
@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(8), {}, r"\[N, 8, \.\.\.\] with 2 to 5 axes, got \(8,\)"),
        (torch.zeros(8, 4), {}, r"got \(8, 4\)"),
        (torch.zeros(9, 8), {"stats_id": 1}, r"row 1 has no reference batch: call `with reference_pass\(module\)"),
        (torch.zeros(9, 8), {"stats_id": 2}, "stats_id=2: there are rows 0 to 1"),
        (torch.zeros(9, 8), {}, "2 rows of statistics and none chosen"),
        (torch.zeros(9, 8), {"stats_id": 0, "bias": torch.zeros(7)}, r"bias must have shape \(8,\), got \(7,\)"),
    ],
)
def test_forward_refuses(algebra: str, x: Tensor, options: dict[str, Any], message: str) -> None:
    """Wrong shapes, a row that is unknown, not chosen or without a reference, are errors that tell the remedy."""
    layer = build(8, algebra, x_ref=samples(9, 8))
    layer.checkpoint_stats()
    with pytest.raises(ValueError, match=message):
        layer(x, **options)


@every_algebra
def test_a_reference_of_one_value_is_refused(algebra: str) -> None:
    """One value per channel has no variance, and leaves the row without a reference."""
    layer = build(8, algebra)
    with pytest.raises(ValueError, match=r"more than one value per channel, got x of shape \(1, 8\)"):
        collect(layer, torch.zeros(1, 8))
    assert layer.reference_count.tolist() == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": 6, "algebra": "quaternion"}, "num_features=6: must be a positive multiple of 4"),
        ({"algebra": "octonion"}, "algebra=octonion: "),
        ({"whitening": "pca"}, "whitening=pca: "),
        ({"eps": 0.0}, "eps=0.0: "),
    ],
)
def test_constructor_refuses(options: dict[str, Any], message: str) -> None:
    """An argument outside its set is an error of one line that names it and its value."""
    with pytest.raises(ArgumentError, match=rf"\A{message}.*\Z"):
        VirtualBatchNormLayer(**{"num_features": 8, **options})


@every_algebra
def test_hyper_shapes(algebra: Any) -> None:
    """A hypernetwork may write Gamma and beta; the reference's statistics are measured."""
    layer = VirtualBatchNormLayer(8, algebra=algebra)
    assert layer.hyper_shapes == layer.param_shapes == {name: value.shape for name, value in layer.weights.items()}
    assert not VirtualBatchNormLayer(8, algebra=algebra, affine=False).param_shapes
