"""The laws of `BatchNormLayer`, for every algebra and mode."""

import weakref
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from hnetcl.algebra import ALGEBRAS, Algebra
from hnetcl.bn import BATCH, BatchNormLayer, ConvBatchNorm, auxiliary_loss, using_task
from hnetcl.bn.statistics import STATS
from hnetcl.errors import ArgumentError
from hnetcl.kernels.whitening import WHITENINGS

every_algebra = pytest.mark.parametrize("algebra", ALGEBRAS)
every_whitener = pytest.mark.parametrize(("algebra", "whitening"), list(product(ALGEBRAS, ("zca", "cholesky"))))
every_kind = pytest.mark.parametrize(("algebra", "whitening"), list(product(ALGEBRAS, WHITENINGS)))
in_both_modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
generated = settings(deadline=None, max_examples=12, derandomize=True, database=None)
shapes = st.tuples(st.integers(2, 12), st.integers(1, 3), st.lists(st.integers(1, 4), max_size=3))  # N, Q, S
assert_equal = partial(torch.testing.assert_close, atol=0, rtol=0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(num_features: int, algebra: Any, rows: int = 1, **options: Any) -> BatchNormLayer:
    layer = BatchNormLayer(num_features, algebra=algebra, **options).double()
    for _ in range(rows - 1):
        layer.checkpoint_stats()
    return layer


def samples(*shape: int) -> Tensor:
    """Samples [N, C, *S] whose channels are correlated, off centre and of different scales."""
    mixing = torch.randn(shape[1], shape[1], dtype=torch.float64)
    return torch.einsum("cd,nd...->nc...", mixing, torch.randn(shape, dtype=torch.float64)) + 3


def moments(x: Tensor, d: int, correction: int = 0) -> tuple[Tensor, Tensor]:
    """Mean [C] and covariance [Q, d, d]; the components of number k are the channels k, k + Q, ..."""
    channels = x.detach().transpose(0, 1).flatten(1)
    q = len(channels) // d
    cov = [torch.cov(channels[k::q], correction=correction).reshape(d, d) for k in range(q)]
    return channels.mean(1), torch.stack(cov)


def from_outside(layer: BatchNormLayer) -> dict[str, Tensor]:
    """Random values for all four tensors that `forward` takes."""
    values = {name: torch.randn(shape, dtype=torch.float64) for name, shape in layer.hyper_shapes.items()}
    var = values["running_var"]
    values["running_var"] = var**2 + 1 if var.ndim == 1 else var @ var.mT + torch.eye(var.shape[-1])
    return values


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def buffers(layer: nn.Module) -> dict[str, Tensor]:
    return copies(dict(layer.named_buffers()))


@every_whitener
@generated
@given(shape=shapes)
def test_whitens(algebra: str, whitening: str, shape: tuple[int, int, list[int]]) -> None:
    """Without affine, y has mean 0 and its covariance the eigenvalues lam / (lam + eps) for those of x, also where lam = 0.

    That holds for the biased covariance in training, and for the unbiased one where evaluation uses the row of this very batch.
    """
    d, (n, q, space) = ALGEBRAS[algebra].dim, shape
    layer, x = build(d * q, algebra, whitening=whitening, affine=False, momentum=1.0, eps=0.1), samples(n, d * q, *space)
    for training, correction in ((True, 0), (False, 1)):
        mean, cov = moments(layer.train(training)(x), d, correction)
        lam = torch.linalg.eigvalsh(moments(x, d, correction)[1]).clamp_min(0)
        torch.testing.assert_close(mean, torch.zeros_like(mean))
        torch.testing.assert_close(torch.linalg.eigvalsh(cov), lam / (lam + 0.1))


@every_whitener
def test_default_gamma_gives_unit_numbers(algebra: str, whitening: str) -> None:
    """With the initial Gamma the covariance is I / d, so E|y|^2 = 1."""
    d = ALGEBRAS[algebra].dim
    _, cov = moments(build(3 * d, algebra, whitening=whitening, eps=1e-30)(samples(20, 3 * d, 4)), d)
    torch.testing.assert_close(cov, torch.eye(d, dtype=torch.float64).expand_as(cov) / d)


@every_algebra
@generated
@given(shape=shapes)
def test_naive_is_real_batch_norm_of_every_component(algebra: str, shape: tuple[int, int, list[int]]) -> None:
    """Training and evaluation are torch's, scaled by the initial Gamma."""
    d, (n, q, space) = ALGEBRAS[algebra].dim, shape
    layer, x = build(d * q, algebra, whitening="naive", momentum=1.0), samples(n, d * q, *space)
    mean, var = x.new_zeros(2, d * q)
    y = F.batch_norm(x, mean, var, training=True, momentum=1.0) / d**0.5
    torch.testing.assert_close(layer(x), y)
    torch.testing.assert_close(layer.eval()(x + 1), F.batch_norm(x + 1, mean, var) / d**0.5)


@pytest.mark.parametrize("d", [3, 8])
@pytest.mark.parametrize("whitening", ["zca", "cholesky"])
def test_numbers_of_any_dimension(d: int, whitening: Any) -> None:
    """The layer needs no product, so it whitens numbers of any number of components; rows and evaluation included."""
    layer, x = (
        BatchNormLayer(2 * d, algebra=Algebra("any", d, ()), whitening=whitening, momentum=1.0, eps=1e-30).double(),
        samples(99, 2 * d),
    )
    for training, correction in ((True, 0), (False, 1)):
        _, cov = moments(layer.train(training)(x), d, correction)
        torch.testing.assert_close(cov, torch.eye(d, dtype=torch.float64).expand_as(cov) / d)


@every_algebra
def test_default_whitening_is_the_papers(algebra: Any) -> None:
    """Quaternions are whitened by the Cholesky factor, all else symmetrically."""
    assert BatchNormLayer(8, algebra=algebra).whitening == ("cholesky" if algebra == "quaternion" else "zca")


@every_algebra
@generated
@given(shape=shapes)
def test_zca_turns_with_its_input(algebra: str, shape: tuple[int, int, list[int]]) -> None:
    """For orthogonal R, x -> R x gives y -> R y."""
    d, (n, q, space) = ALGEBRAS[algebra].dim, shape
    rotation = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q
    layer, x = build(d * q, algebra, whitening="zca"), samples(n, d * q, *space)

    def rotate(x: Tensor) -> Tensor:
        return torch.einsum("ab,nb...->na...", rotation, x.reshape(n, d, q, *space)).flatten(1, 2)

    torch.testing.assert_close(layer(rotate(x)), rotate(layer(x)))


@every_kind
@generated
@given(scale=st.floats(1e-6, 1e6))
def test_scale_and_shift_are_removed(algebra: str, whitening: str, scale: float) -> None:
    """y(a x + b) = y(x) for a > 0, where eps is nothing."""
    layer, x = build(8, algebra, whitening=whitening, eps=1e-30), samples(16, 8)
    torch.testing.assert_close(layer(scale * (x + 1)), layer(x))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_real_equals_torch(momentum: float | None, affine: bool) -> None:
    """For d = 1, outputs, gradients and running statistics are those of torch's layer over 50 steps, then in evaluation."""
    ours = BatchNormLayer(5, momentum=momentum, affine=affine)
    torchs = nn.BatchNorm2d(5, momentum=momentum, affine=affine)
    for step in range(51):
        x, form = (torch.randn(4, 5, 3, 2) * 7 + step).requires_grad_(), torch.randn(4, 5, 3, 2)
        y, expected = ours.train(step < 50)(x), torchs.train(step < 50)(x)
        torch.testing.assert_close(y, expected)
        got = torch.autograd.grad((y * form).sum(), [x, *ours.parameters()])
        torch.testing.assert_close(got, torch.autograd.grad((expected * form).sum(), [x, *torchs.parameters()]))
        torch.testing.assert_close({name: buffer[0] for name, buffer in ours.named_buffers()}, buffers(torchs))


@in_both_modes
def test_real_call_with_given_tensors_equals_torch(training: bool) -> None:
    """For d = 1, a call with all four tensors gives `F.batch_norm`'s output and updates."""
    layer, x = build(5, "real").train(training), samples(8, 5, 3)
    ours = from_outside(layer)
    torchs: dict[str, Any] = {**copies(ours)}
    torch.testing.assert_close(layer(x, **ours), F.batch_norm(x, **torchs, training=training))
    torch.testing.assert_close(ours, torchs)


@every_algebra
@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics(algebra: str, momentum: float | None) -> None:
    """Rows average the batches' means and unbiased covariances, without eps; momentum None weighs all batches equally."""
    layer, d = build(8, algebra, momentum=momentum, eps=10.0), ALGEBRAS[algebra].dim
    mean, var = layer.get_stats(0)
    for step in range(1, 6):
        x = samples(9, 8, 2)
        layer(x)
        new_mean, new_cov = moments(x, d, correction=1)
        mean = mean.lerp(new_mean, momentum or 1 / step)
        var = var.lerp(new_cov.reshape(var.shape), momentum or 1 / step)
    torch.testing.assert_close(layer.get_stats(0), (mean, var), atol=0, rtol=1e-12)


@every_algebra
def test_frozen_is_affine(algebra: str) -> None:
    """Frozen layers give Gamma x + beta, Gamma symmetric with `weight` as its upper triangle, and take single samples."""
    layer, d, q = build(8, algebra, stats="frozen"), ALGEBRAS[algebra].dim, 8 // ALGEBRAS[algebra].dim
    values, x = from_outside(layer), samples(1, 8, 3)
    weight, bias = values["weight"].reshape(q, -1), values["bias"]
    expected = torch.empty_like(x)
    for k in range(q):
        gamma = torch.zeros(d, d, dtype=torch.float64)
        gamma[*torch.triu_indices(d, d)] = weight[k]
        expected[0, k::q] = (gamma + gamma.triu(1).T) @ x[0, k::q] + bias[k::q, None]
    layer.load_state_dict({"weight": values["weight"], "bias": bias})
    for training in (True, False):
        torch.testing.assert_close(layer.train(training)(x), expected)


MODES = {  # batch statistics used, running statistics updated: in training, in evaluation
    "given": ((True, True), (False, False)),
    "tracked": ((True, True), (False, False)),
    "learnable": ((True, True), (False, False)),  # by its first batch, then by the optimizer: see test_statistics.py
    "frozen": ((False, False), (False, False)),
    "batch": ((True, False), (True, False)),
    "generated": ((False, False), (False, False)),
    "distilled": ((True, True), (False, False)),
}


@every_algebra
@in_both_modes
@pytest.mark.parametrize(("stats", "mode"), [(s, s) for s in STATS] + [(s, "given") for s in STATS])
def test_modes(algebra: str, training: bool, stats: str, mode: str) -> None:
    """Batch statistics are used (y ignores a shift of x) and running ones updated as the table says, nothing else is."""
    batch_used, updated = MODES[mode][0 if training else 1]
    layer, x = build(8, algebra, stats=stats).train(training), samples(9, 8, 2)
    passed = {k: value for k, value in from_outside(layer).items() if mode == "given" and k.startswith("running")}
    before, own = copies(passed), copies(layer.rows)
    y = layer(x, **passed)
    assert any(not value.equal(before[name]) for name, value in passed.items()) == (updated and mode == "given")
    assert any(not value.equal(own[name]) for name, value in layer.rows.items()) == (updated and mode != "given")
    assert torch.allclose(layer(x + 5, **passed), y) == batch_used


@every_algebra
@in_both_modes
@pytest.mark.parametrize("stats", STATS)
def test_memory_layout_does_not_matter(algebra: str, training: bool, stats: str) -> None:
    """Of x: transposed, every other value, expanded."""
    layer, x = build(8, algebra, stats=stats).train(training), samples(9, 8, 4, 3)
    for same in (x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT, torch.stack([x, x], -1)[..., 0]):
        leaf, other = x.detach().requires_grad_(), same.detach().requires_grad_()
        y, expected = layer(other), layer(leaf)
        torch.testing.assert_close(y, expected)
        got, wanted = torch.autograd.grad(y.pow(3).sum(), other), torch.autograd.grad(expected.pow(3).sum(), leaf)
        torch.testing.assert_close(got, wanted)
    one = x[:1].expand(9, -1, -1, -1)
    torch.testing.assert_close(layer(one), layer(one.contiguous()))


@every_algebra
def test_memory_layout_of_given_tensors_does_not_matter(algebra: str) -> None:
    """Views into larger tensors, as slices of what a hypernetwork wrote, serve as their copies."""
    layer = build(8, algebra).eval()
    values = from_outside(layer)
    views = {name: torch.stack([value, torch.full_like(value, torch.nan)], -1)[..., 0] for name, value in values.items()}
    for name, form in product(views, (torch.contiguous_format, torch.channels_last)):
        x = samples(9, 8, 4, 3).contiguous(memory_format=form).requires_grad_()
        y, expected = layer(x, **{**values, name: views[name]}), layer(x, **values)
        torch.testing.assert_close(y, expected)
        got, wanted = (torch.autograd.grad(each.pow(3).sum(), x) for each in (y, expected))
        torch.testing.assert_close(got, wanted)


@every_algebra
@in_both_modes
@pytest.mark.parametrize("stats", STATS)
def test_ensembles(algebra: str, training: bool, stats: str) -> None:
    """`vmap` over layers gives the outputs, gradients and statistics of each; inputs of their own or shared."""
    layers = [build(8, algebra, stats=stats) for _ in range(3)]
    for layer in layers:
        with torch.no_grad():
            if layer.num_stats:
                layer(samples(9, 8))
            layer.train(training)
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter) / 5)
    x, shared = torch.stack([samples(9, 8, 2) for _ in range(3)]), samples(9, 8, 2)

    def loss(parameters: dict[str, Tensor], statistics: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        y = functional_call(layers[0], (parameters, statistics), (x,))
        return y.pow(3).mean() + auxiliary_loss(layers[0]), y

    gradient = torch.func.grad(loss, has_aux=True)
    for inputs, dims in ((x, (0, 0, 0)), (shared, (0, 0, None))):
        parameters, statistics = torch.func.stack_module_state(layers)
        weights = copies(parameters)
        got = torch.func.vmap(gradient, in_dims=dims)(weights, statistics, inputs)
        for k, layer in enumerate(layers):
            own = copies(dict(layer.named_parameters())), buffers(layer)
            expected = gradient(*own, inputs if inputs is shared else inputs[k])
            assert_close = partial(torch.testing.assert_close, atol=1e-9, rtol=1e-9)
            assert_close({n: v[k] for n, v in got[0].items()}, expected[0])
            assert_close(got[1][k], expected[1])
            assert_close([{n: v[k] for n, v in part.items()} for part in (weights, statistics)], [*own])


@every_algebra
@pytest.mark.parametrize("shape", [(0, 8), (0, 8, 3), (2, 8, 0)], ids=str)
def test_nothing_gives_nothing(algebra: str, shape: tuple[int, ...]) -> None:
    """Without samples or positions the output is empty and gradients are zero, in both modes as in torch; no row moves."""
    for backend, stats, training in product(("closed_form", "reference"), STATS, (True, False)):
        layer, x = build(8, algebra, stats=stats, backend=backend).train(training), samples(*shape).requires_grad_()
        before = buffers(layer)
        y = layer(x)
        y.sum().backward()
        assert y.shape == shape
        assert x.grad is not None
        for parameter in layer.parameters():
            assert parameter.grad is None or not parameter.grad.any()
        assert_equal(buffers(layer), before)


@every_algebra
def test_nothing_moves_no_given_statistics(algebra: str) -> None:
    """Of a caller's plain tensors in training, nor of the norm of a fused convolution."""
    layer, given = build(8, algebra), from_outside(build(8, algebra))
    before = copies(given)
    assert layer(samples(0, 8, 2), **given).shape == (0, 8, 2)
    assert_equal(given, before)
    fused = ConvBatchNorm(nn.Conv2d(3, 8, 3).double(), layer)
    rows = buffers(layer)
    fused(torch.zeros(0, 3, 5, 5, dtype=torch.float64)).sum().backward()
    assert_equal(buffers(layer), rows)


@every_algebra
@in_both_modes
@pytest.mark.parametrize("backend", ["closed_form", "reference"])
def test_several_gradients_at_once(algebra: str, training: bool, backend: str) -> None:
    """`is_grads_batched=True` gives what a loop gives: of x, Gamma, beta, given statistics, through a fused convolution."""
    layer, conv = build(8, algebra, backend=backend).train(training), nn.Conv1d(3, 8, 2).double()
    x, z = samples(9, 8, 2).requires_grad_(), samples(5, 3, 4).requires_grad_()
    given = {name: value.requires_grad_() for name, value in from_outside(layer).items()}
    calls: list[tuple[Tensor, list[Tensor]]] = [(layer(x), [x, *layer.parameters()])]
    calls.append((ConvBatchNorm(conv, layer)(z), [z, *conv.parameters(), *layer.parameters()]))
    if not training:
        calls.append((layer(x, **given), [x, *given.values()]))
    for y, leaves in calls:
        many = torch.randn(3, *y.shape, dtype=torch.float64)
        gradients = partial(torch.autograd.grad, y, leaves, retain_graph=True)
        together = gradients(many, is_grads_batched=True)
        torch.testing.assert_close(together, tuple(map(torch.stack, zip(*map(gradients, many), strict=True))))
    jacobian = partial(torch.autograd.functional.jacobian, layer.eval(), x)
    torch.testing.assert_close(jacobian(vectorize=True), jacobian())


@every_algebra
@pytest.mark.parametrize("backend", ["closed_form", "reference"])
@pytest.mark.parametrize("form", [torch.channels_last, torch.channels_last_3d], ids=str)
def test_channels_last_stays(algebra: str, backend: str, form: torch.memory_format) -> None:
    """Outputs and gradients are laid out like x, in every mode, also behind a gradient that is not; in place is no harm."""
    contiguous = samples(4, 8, 3, 5, *[2] * (form is torch.channels_last_3d))
    x = contiguous.contiguous(memory_format=form).requires_grad_()
    for stats, training in product(("tracked", "generated"), (True, False)):
        layer = build(8, algebra, stats=stats, backend=backend).train(training)
        y, expected = layer(x), layer(leaf := contiguous.clone().requires_grad_())
        assert y.is_contiguous(memory_format=form)
        torch.testing.assert_close(F.relu(y, inplace=True), F.relu(expected))
        for g in (torch.randn_like(expected), torch.randn_like(y)):
            (dx,) = torch.autograd.grad(y, x, g, retain_graph=True)
            assert dx.is_contiguous(memory_format=form)
            torch.testing.assert_close(dx, torch.autograd.grad(F.relu(expected), leaf, g, retain_graph=True)[0])


def test_complex_channels_last_stays() -> None:
    x = torch.randn(4, 6, 3, 5, dtype=torch.complex64).contiguous(memory_format=torch.channels_last)
    y = BatchNormLayer(12, algebra="complex").eval()(x)
    assert y.is_contiguous(memory_format=torch.channels_last)


@every_algebra
@pytest.mark.parametrize("stats", ["tracked", "learnable", "distilled"])
def test_memory_formats_and_half_precision_pass_rows_by(algebra: Any, stats: Any) -> None:
    """They stay as they are laid out, and in float32; `.double()` widens them, and half-precision input is normalized."""
    layer = BatchNormLayer(8, algebra=algebra, stats=stats)
    layer(torch.randn(9, 8))
    before = layer.get_stats(0)
    for form in (torch.channels_last, torch.channels_last_3d):
        layer.to(memory_format=form)  # type: ignore[call-overload]
        assert all(value.is_contiguous() for value in layer.rows.values())
    for half in (torch.bfloat16, torch.float16):
        layer.double().to(half)
        assert layer.weight is not None
        assert layer.weight.dtype == half
        assert {value.dtype for value in layer.rows.values()} == {torch.float32, torch.int64}
        assert_equal(layer.get_stats(0), before)
        assert layer.eval()(torch.randn(9, 8, dtype=half)).dtype == half
    layer.checkpoint_stats()
    assert layer.double().get_stats(1)[0].dtype == torch.float64


@every_algebra
def test_gradients_reach_given_tensors(algebra: str) -> None:
    """In evaluation gradients reach all four tensors from outside, and none of them is written to."""
    layer = build(8, algebra).eval()
    values = {name: value.requires_grad_() for name, value in from_outside(layer).items()}
    before = copies(values)
    grads = torch.autograd.grad(layer(samples(9, 8, 2), **values).pow(3).sum(), list(values.values()))
    assert all(grad.isfinite().all() and grad.any() for grad in grads)
    assert_equal(copies(values), before)


@every_algebra
@pytest.mark.parametrize("kind", ["plain", "leaf", "graph"])
def test_only_plain_statistics_are_updated(algebra: str, kind: str) -> None:
    """In training given statistics that carry a gradient are left alone, and plain ones move as a row would."""
    layer, twin, x = build(8, algebra), build(8, algebra), samples(9, 8, 2)
    passed = {name: row[0].requires_grad_(kind != "plain") for name, row in buffers(layer).items() if "running" in name}
    if kind == "graph":
        passed = {name: value * 1 for name, value in passed.items()}
    rows, before = buffers(layer), copies(passed)
    layer(x, **passed)
    twin(x)
    moved = {name: buffer[0] for name, buffer in buffers(twin).items() if name in passed}
    torch.testing.assert_close(copies(passed), moved if kind == "plain" else before, atol=0, rtol=1e-12)
    assert_equal(buffers(layer), rows)


@every_algebra
def test_transforms_do_not_hide_gradients(algebra: str) -> None:
    """Statistics that learn outside of `torch.func.grad` get their gradient inside, and are not written to in training."""
    layer, x = build(8, algebra), samples(9, 8, 2)
    learned = {name: value.requires_grad_() for name, value in from_outside(layer).items() if "running" in name}

    def loss(x: Tensor) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
        passed = {name: value * 1 for name, value in learned.items()}
        value = layer(x, **passed).pow(3).sum()
        return value, (value, passed)

    for training in (True, False):
        layer.train(training)
        leaf = x.clone().requires_grad_()
        value, _ = loss(leaf)
        gradient, (inside, passed) = torch.func.grad(loss, has_aux=True)(x)
        torch.testing.assert_close(gradient, torch.autograd.grad(value, leaf, retain_graph=True)[0])
        assert_equal(copies(passed), copies(learned))
    got, wanted = (torch.autograd.grad(each, list(learned.values())) for each in (inside, value))
    torch.testing.assert_close(got, wanted)


@every_algebra
def test_nothing_of_a_step_stays(algebra: str) -> None:
    """A training step leaves no graph on a buffer and keeps no tensor of its graph alive."""
    layer = build(8, algebra, rows=3)
    for row in (0, 2, 2):
        x = samples(9, 8, 2).requires_grad_() * 1
        y, seen = layer(x, stats_id=row), weakref.ref(x)
        assert y.requires_grad
        assert not any(buffer.requires_grad for buffer in layer.buffers())
        del x, y
        assert seen() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": 6, "algebra": "quaternion"}, "num_features=6: must be a positive multiple of 4"),
        ({"num_features": 0}, "num_features=0: must be a positive multiple of 1"),
        ({"algebra": "octonion"}, "algebra=octonion: "),
        ({"stats": "learned"}, "stats=learned: "),
        ({"whitening": "pca"}, "whitening=pca: "),
        ({"momentum": 1.5}, "momentum=1.5: "),
        ({"eps": -1e-5}, "eps=-1e-05: "),
    ],
)
def test_constructor_refuses(options: dict[str, Any], message: str) -> None:
    """An argument outside its set is an error of one line that names it and its value."""
    with pytest.raises(ArgumentError, match=rf"\A{message}.*\Z"):
        BatchNormLayer(**{"num_features": 8, **options})


@every_algebra
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(8), r"\[N, 8, \.\.\.\] with 2 to 5 axes, got \(8,\)"),
        (torch.zeros(2, 8, 1, 1, 1, 1), r"got \(2, 8, 1, 1, 1, 1\)"),
        (torch.zeros(8, 4), r"got \(8, 4\)"),
        (torch.zeros(2, 8, dtype=torch.complex64), r"expected a (real|complex) x .*, got \(2, 8\) of torch.complex64"),
        (torch.zeros(1, 8), r"more than one value per channel, got x of shape \(1, 8\)"),
        (torch.zeros(1, 8, 1, 1), r"more than one value per channel, got x of shape \(1, 8, 1, 1\)"),
    ],
)
def test_forward_refuses(algebra: Any, x: Tensor, message: str) -> None:
    """Wrong rank, channels or kind, and single samples in training, are errors that tell what was got."""
    with pytest.raises(ValueError, match=message):
        BatchNormLayer(8, algebra=algebra)(x)


@in_both_modes
@pytest.mark.parametrize(("row", "message"), [(None, "2 rows .* none chosen"), (2, "stats_id=2"), (-1, "stats_id=-1")])
def test_rows_must_be_chosen(training: bool, row: int | None, message: str) -> None:
    """Several rows and none chosen, or one that does not exist, is an error."""
    with pytest.raises(ValueError, match=message):
        build(8, "complex", rows=2).train(training)(samples(9, 8), stats_id=row)


@every_algebra
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("choose", [int, torch.tensor], ids=["int", "tensor"])
def test_training_touches_the_chosen_row_only(algebra: str, momentum: float | None, choose: Any) -> None:
    """Of seven rows, an int or a 0-dim tensor trains and reads one, as if it were a layer of its own."""
    layer, alone = build(8, algebra, rows=7, momentum=momentum), build(8, algebra, momentum=momentum)
    before = buffers(layer)
    for training in (True, True, False):
        x = samples(9, 8, 2)
        assert_equal(layer.train(training)(x, stats_id=choose(4)), alone.train(training)(x))
    for name, value in alone.named_buffers():
        assert_equal(layer.get_buffer(name), before[name].index_copy(0, torch.tensor([4]), value))


@every_algebra
@pytest.mark.parametrize(("saved", "built"), [(7, 1), (1, 7)])
def test_state_dicts_bring_their_rows(algebra: str, saved: int, built: int) -> None:
    """A layer takes as many rows as the state has, whatever it had."""
    source, target = build(8, algebra, rows=saved), build(8, algebra, rows=built)
    for row in range(saved):
        source(samples(9, 8, 2), stats_id=row)
    target.load_state_dict(source.state_dict())
    assert target.num_stats == saved
    assert_equal(buffers(target), buffers(source))


@every_algebra
def test_new_rows_follow_the_newest(algebra: Any) -> None:
    """A new row is 0 and I, on the device and in the dtype of the rows before it, which stay as they are."""
    layer = BatchNormLayer(8, algebra=algebra).double()
    fresh = layer.get_stats(0)
    layer(samples(9, 8))
    trained = layer.get_stats(0)
    layer.checkpoint_stats()
    assert_equal([layer.get_stats(0), layer.get_stats(1)], [trained, fresh])
    layer.to("meta").checkpoint_stats()
    assert {(buffer.device.type, buffer.dtype) for buffer in layer.buffers()} == {
        ("meta", torch.float64),
        ("meta", torch.int64),
    }


@every_algebra
@in_both_modes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_layers_work(algebra: Any, training: bool, dtype: torch.dtype) -> None:
    """A layer and an input in half precision give finite outputs and gradients in it."""
    layer, x = BatchNormLayer(8, algebra=algebra).to(dtype).train(training), torch.randn(9, 8, 3, dtype=dtype).requires_grad_()
    y = layer(x)
    y.sum().backward()
    for tensor in (y, x.grad, *(parameter.grad for parameter in layer.parameters())):
        assert tensor is not None
        assert tensor.dtype == dtype
        assert tensor.isfinite().all()


@every_algebra
def test_get_stats_copies(algebra: str) -> None:
    """Writing to what `get_stats` gave, or training on, changes nothing on the other side."""
    layer = build(8, algebra)
    before, got = buffers(layer), layer.get_stats(0)
    for value in got:
        value.fill_(9)
    assert_equal(buffers(layer), before)
    layer(samples(9, 8))
    assert all((value == 9).all() for value in got)


@pytest.mark.parametrize("stats", ["frozen", "batch"])
def test_layers_without_rows(stats: str) -> None:
    """Modes without running statistics have no rows to open or read."""
    layer = build(8, "complex", stats=stats)
    assert layer.num_stats == 0
    assert not buffers(layer)
    for call in (layer.checkpoint_stats, partial(layer.get_stats, 0)):
        with pytest.raises(ValueError, match=f"stats={stats}, .* keeps no rows"):
            call()


def test_using_task_chooses_rows_everywhere() -> None:
    """Within `using_task(net, k)` every layer of a net uses row k; leaving, even by an exception, restores what was."""
    layers, x = [build(8, algebra, rows=4) for algebra in ("real", "quaternion")], samples(9, 8)
    net = nn.Sequential(layers[0], nn.Sequential(layers[1]))
    tensor = torch.tensor(3)

    def fail() -> None:
        with using_task(net, tensor):
            net(x)
            raise KeyError

    with using_task(net, 1):
        net(x)
        with pytest.raises(KeyError):
            fail()
        net(x)
    assert [layer.row for layer in layers] == [None, None]
    for layer in layers:
        assert buffers(layer)["num_batches_tracked"].tolist() == [0, 2, 0, 1]
    with using_task(net.eval(), tensor):
        assert_equal(net(x), layers[1](layers[0](x, stats_id=3), stats_id=3))


@every_algebra
@pytest.mark.parametrize("stats", STATS)
@pytest.mark.parametrize("choose", [int, torch.tensor], ids=["int", "tensor"])
def test_tasks_share_a_graph(algebra: str, stats: str, choose: Any) -> None:
    """A task may be evaluated in the same graph in which rows are trained: the gradients are those of each graph alone."""
    layer, x = build(8, algebra, stats=stats), samples(9, 8, 2).requires_grad_()
    if layer.num_stats:
        layer.checkpoint_stats()

    def loss(row: int, training: bool) -> Tensor:
        y: Tensor = layer.train(training)(x, stats_id=choose(row))
        return y.pow(3).sum()

    calls = (0, False), (1, True), (1, False), (0, True)
    losses = [loss(*call) for call in calls]
    leaves = [x, *layer.parameters()]
    gradients = partial(torch.autograd.grad, inputs=leaves, retain_graph=True, materialize_grads=True)
    alone = [gradients(each) for each in losses]
    for together, *parts in zip(gradients(sum(losses, torch.zeros(()))), *alone, strict=True):
        torch.testing.assert_close(together, torch.stack(parts).sum(0))


@every_algebra
@in_both_modes
def test_batch_in_place_of_a_row(algebra: str, training: bool) -> None:
    """Within `using_task(net, BATCH)` a tracked layer does as one with stats="batch" and touches no row."""
    layer, x = build(8, algebra, rows=2).train(training), samples(9, 8, 2)
    before = buffers(layer)
    with using_task(layer, BATCH):
        assert_equal(layer(x), build(8, algebra, stats="batch")(x))
    assert_equal(buffers(layer), before)
