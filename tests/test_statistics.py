"""Statistics that learn, that are written, that are measured; and rows that can't be misused."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.func import functional_call

from hnetcl.algebra import ALGEBRAS
from hnetcl.bn import (
    BATCH,
    BatchNormLayer,
    ConvBatchNorm,
    VirtualBatchNormLayer,
    auxiliary_loss,
    batchnorm_layers,
    recalibrate,
    using_task,
    writable_parameters,
)
from hnetcl.bn.gaussian import distance, divergence, parameters, statistics
from hnetcl.bn.statistics import STATS
from hnetcl.kernels.layout import complex_to_real

every_algebra = pytest.mark.parametrize("algebra", ALGEBRAS)
every_dim = pytest.mark.parametrize("d", [1, 2, 4, 8])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def samples(*shape: int) -> Tensor:
    """Samples [N, C, *S] whose channels are correlated, off centre and of different scales."""
    mixing = torch.randn(shape[1], shape[1], dtype=torch.float64)
    return torch.einsum("cd,nd...->nc...", mixing, torch.randn(shape, dtype=torch.float64)) + 3


def gaussian(d: int, *lead: int, q: int = 3) -> tuple[Tensor, Tensor]:
    root = torch.randn(*lead, q, d, d, dtype=torch.float64)
    return torch.randn(*lead, q * d, dtype=torch.float64), root @ root.mT + torch.eye(d) / 4


def moments(x: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Mean [C] and unbiased covariance [Q, d, d]."""
    channels = x.transpose(0, 1).flatten(1)
    q = len(channels) // d
    return channels.mean(1), torch.stack([torch.cov(channels[k::q]).reshape(d, d) for k in range(q)])


# ---------------------------------------------------------------------- normal distributions


@every_dim
@pytest.mark.parametrize("lead", [(), (2,)], ids=str)
def test_location_and_factor_stand_for_mean_and_covariance(d: int, lead: tuple[int, ...]) -> None:
    """`parameters` is the inverse of `statistics`; zeros are mean 0 and covariance I; any numbers are positive definite."""
    mean, cov = gaussian(d, *lead)
    location, factor = parameters(mean, cov)
    torch.testing.assert_close(statistics(location, factor), (mean, cov))
    zero, one = statistics(torch.zeros_like(location), torch.zeros_like(factor))
    torch.testing.assert_close((zero, one), (torch.zeros_like(mean), torch.eye(d).double().expand_as(cov)))
    _, any_cov = statistics(location, torch.randn_like(factor))
    assert (torch.linalg.eigvalsh(any_cov) > 0).all()


@every_dim
def test_divergence_is_kullback_leiblers(d: int) -> None:
    """Its differences are torch.distributions' differences, and its gradient vanishes where the two are equal."""
    mean, cov = gaussian(d)
    others = [[value.requires_grad_() for value in parameters(*gaussian(d))] for _ in range(2)]
    target = torch.distributions.MultivariateNormal(mean.reshape(d, -1).T, cov)
    values = []
    for other in others:
        centre, spread = statistics(*other)
        there = torch.distributions.MultivariateNormal(centre.reshape(d, -1).T, spread)
        values.append((divergence(mean, cov, *other), torch.distributions.kl_divergence(target, there).mean()))
    torch.testing.assert_close(values[0][0] - values[1][0], values[0][1] - values[1][1])
    equal = [value.requires_grad_() for value in parameters(mean, cov)]
    gradients = torch.autograd.grad(divergence(mean, cov, *equal), equal)
    torch.testing.assert_close(gradients, tuple(torch.zeros_like(value) for value in equal), atol=1e-9, rtol=0)


@every_dim
def test_distance(d: int) -> None:
    """Zero where equal, symmetric, unchanged by a common linear map, and 1/2 at one standard deviation."""
    (mean, cov), (other, spread) = gaussian(d), gaussian(d)
    near = distance(mean, cov, other, spread, eps=0)
    assert near > 0
    torch.testing.assert_close(distance(other, spread, mean, cov, eps=0), near)
    torch.testing.assert_close(distance(mean, cov, mean, cov, eps=0), torch.zeros_like(near))
    turn = torch.randn(3, d, d, dtype=torch.float64)
    mapped = [(turn @ m.reshape(d, -1).T.unsqueeze(-1)).squeeze(-1).T.reshape(-1) for m in (mean, other)]
    torch.testing.assert_close(distance(mapped[0], turn @ cov @ turn.mT, mapped[1], turn @ spread @ turn.mT, eps=0), near)
    eye = 4 * torch.eye(d).expand(3, d, d)
    half = distance(torch.zeros(3 * d), eye, 2 * torch.ones(3 * d), eye, eps=0)
    torch.testing.assert_close(half, torch.tensor(0.5, dtype=torch.float64))
    assert distance(mean[None].expand(4, 1, -1), cov, other[None].expand(5, -1), spread, eps=0).shape == (4, 5)


# ---------------------------------------------------------------------- learnable, generated, distilled


@every_algebra
def test_learnable_rows_learn_the_statistics(algebra: Any) -> None:
    """Gradient descent on the auxiliary loss brings the chosen row to the data's statistics; no other row or weight moves."""
    d, layer = ALGEBRAS[algebra].dim, BatchNormLayer(8, algebra=algebra, stats="learnable").double()
    layer.checkpoint_stats()
    mean, cov = moments(x := samples(64, 8, 3), d)
    with torch.no_grad():
        layer(samples(9, 8), stats_id=1)  # a first batch, of other statistics
    untouched = [value[0].detach().clone() for value in layer.rows.values()]
    start = distance(mean, cov, *layer.row_statistics(1), eps=0)
    optimizer = torch.optim.Adam([p for n, p in layer.named_parameters() if n.startswith("running")], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        layer(x, stats_id=1)
        auxiliary_loss(layer).backward()
        optimizer.step()
    assert distance(mean, cov, *layer.row_statistics(1), eps=0) < 1e-3 < start
    for before, value in zip(untouched, layer.rows.values(), strict=True):
        assert torch.equal(value[0], before)


@every_algebra
def test_a_learnable_row_starts_at_its_first_batch(algebra: Any) -> None:
    """So that evaluation after one batch whitens it, but for the unbiased covariance."""
    layer = BatchNormLayer(8, algebra=algebra, stats="learnable", eps=1e-9).double()
    mean, cov = moments(x := samples(20, 8, 2), ALGEBRAS[algebra].dim)
    layer(x)
    torch.testing.assert_close(layer.row_statistics(0), (mean, cov), atol=1e-6, rtol=1e-6)


@every_algebra
def test_gradients_reach_learnable_rows_in_evaluation(algebra: Any) -> None:
    layer = BatchNormLayer(8, algebra=algebra, stats="learnable").double().eval()
    layer(samples(9, 8)).pow(3).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any(), name


@every_algebra
def test_generated_statistics_are_what_was_written(algebra: Any) -> None:
    """In training and evaluation alike: the same as giving them in evaluation, gradients included."""
    layer = BatchNormLayer(8, algebra=algebra, stats="generated").double()
    given = BatchNormLayer(8, algebra=algebra).double().eval()
    x, form = samples(9, 8, 2), torch.randn(9, 8, 2)
    written = {n: torch.randn_like(p).mul_(0.3).requires_grad_() for n, p in writable_parameters(layer).items()}
    mean, cov = statistics(written["location"], written["factor"])
    var = cov.reshape(given.hyper_shapes["running_var"])
    expected = given(x, running_mean=mean, running_var=var, weight=written["weight"], bias=written["bias"])
    expected_gradients = torch.autograd.grad((expected * form).sum(), list(written.values()))
    for training in (True, False):
        y = functional_call(layer.train(training), written, (x,))
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(torch.autograd.grad((y * form).sum(), list(written.values())), expected_gradients)


@every_algebra
def test_distilled_statistics_are_taught(algebra: Any) -> None:
    """Training is that of a tracked layer; the loss's gradient pulls what is written towards the row, which evaluation uses."""
    layer = BatchNormLayer(8, algebra=algebra, stats="distilled", momentum=1.0).double()
    tracked = BatchNormLayer(8, algebra=algebra, momentum=1.0).double()
    x = samples(64, 8, 3)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), tracked(x))
    torch.testing.assert_close(layer.get_stats(0), tracked.get_stats(0))
    optimizer = torch.optim.Adam([layer.location, layer.factor], lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        (layer(x).sum() + auxiliary_loss(layer)).backward()
        optimizer.step()
    written = layer.eval().evaluation_statistics()
    assert written is not None
    assert distance(*written, *layer.row_statistics(0), eps=0) < 1e-3
    var = written[1].reshape(layer.hyper_shapes["running_var"])
    torch.testing.assert_close(layer(x), tracked.eval()(x, running_mean=written[0], running_var=var))


@every_algebra
@pytest.mark.parametrize("stats", ["learnable", "generated", "distilled"])
@pytest.mark.parametrize("training", [True, False])
def test_autocast_leaves_statistics_alone(algebra: Any, stats: Any, training: bool) -> None:
    """Outputs, gradients and rows are those without it, for nothing of a layer is worth computing in half precision."""
    x, found = samples(9, 8, 2).float(), []
    for enabled in (True, False):
        torch.manual_seed(0)
        layer = BatchNormLayer(8, algebra=algebra, stats=stats)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = layer.train(training)(x)
            loss = y.pow(3).sum() + auxiliary_loss(layer)
        gradients = torch.autograd.grad(loss, list(layer.parameters()), materialize_grads=True)
        found.append((y.detach(), gradients, layer.state_dict()))
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-6)


@every_algebra
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stats", ["learnable", "distilled"])
def test_half_precision_layers_are_taught(algebra: Any, dtype: torch.dtype, stats: Any) -> None:
    """By the auxiliary loss of a wide layer; statistics stay in float32."""
    first, x, found = samples(9, 8, 2), samples(9, 8, 2), []
    for kind in (dtype, torch.float32):
        layer = BatchNormLayer(8, algebra=algebra, stats=stats, momentum=1.0).to(kind)
        with torch.no_grad():
            layer(first.to(dtype).to(kind))
        (layer(x.to(dtype).to(kind)).float().square().sum() + auxiliary_loss(layer)).backward()
        names = ("location", "factor") if stats == "distilled" else ("running_location", "running_factor")
        found.append([layer.weights[name].grad for name in names])
    for gradient, expected in zip(*found, strict=True):
        assert gradient is not None
        assert expected is not None
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, expected, rtol=0, atol=0.03 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_rows_average_any_number_of_batches(dtype: torch.dtype) -> None:
    """Neither the count nor the averages are half-precision numbers."""
    layer = BatchNormLayer(8, momentum=None).to(dtype)
    layer.rows["num_batches_tracked"].fill_(10**6)
    layer.rows["running_mean"].zero_()
    layer(torch.full((4, 8), 3e4, dtype=dtype))
    torch.testing.assert_close(layer.get_stats(0)[0], torch.full((8,), 3e-2), rtol=1e-2, atol=0)


@pytest.mark.parametrize("stats", ["learnable", "distilled"])
@pytest.mark.parametrize("backend", ["closed_form", "reference"])
def test_the_auxiliary_loss_does_not_touch_the_network(stats: Any, backend: Any) -> None:
    """What comes before the layer gets the gradient that it would get without one."""
    x, form = samples(9, 8).requires_grad_(), torch.randn(9, 8)
    gradients = []
    modes: list[Any] = [stats, "tracked"]
    for mode in modes:
        layer = BatchNormLayer(8, algebra="complex", stats=mode, backend=backend).double()
        loss = (layer(x) * form).sum() + auxiliary_loss(layer)
        gradients.append(torch.autograd.grad(loss, [x, *(layer.weights[n] for n in ("weight", "bias"))]))
    torch.testing.assert_close(*gradients)


# ---------------------------------------------------------------------- rows


@every_algebra
@pytest.mark.parametrize("stats", ["tracked", "learnable"])
@pytest.mark.parametrize("backend", ["closed_form", "reference"])
def test_every_sample_by_its_own_row(algebra: Any, stats: Any, backend: Any) -> None:
    """In evaluation a vector of rows gives what each sample gives alone with its row; also chosen by `using_task`."""
    layer = BatchNormLayer(8, algebra=algebra, stats=stats, backend=backend).double()
    for row in range(3):
        if row:
            layer.checkpoint_stats()
        layer(samples(9, 8, 2), stats_id=row)
    layer.eval()
    rows, x = torch.tensor([2, 0, 0, 1, 2]), samples(5, 8, 4)
    expected = torch.cat([layer(one, stats_id=int(row)) for one, row in zip(x.split(1), rows, strict=True)])
    torch.testing.assert_close(layer(x, stats_id=rows), expected)
    with using_task(layer, rows):
        torch.testing.assert_close(layer(x), expected)
    with pytest.raises(ValueError, match="one for each of 4 samples, got 5 rows"):
        layer(x[:4], stats_id=rows)
    with pytest.raises(ValueError, match="in evaluation only"):
        layer.train()(x, stats_id=rows)
    with pytest.raises(ValueError, match="in evaluation only"), using_task(layer, rows):
        layer(x)


@pytest.mark.parametrize("stats", ["frozen", "batch", "generated", "distilled"])
def test_layers_that_do_not_use_rows_take_any(stats: Any) -> None:
    """So that a row for each sample can be chosen in a network that has such layers too."""
    layer = BatchNormLayer(8, stats=stats).eval()
    x = torch.randn(3, 8)
    torch.testing.assert_close(layer(x, stats_id=torch.tensor([2, 0, 1])), layer(x))


def test_using_task_refuses_a_row_that_is_not_there() -> None:
    net = nn.Sequential(BatchNormLayer(4), BatchNormLayer(4, stats="frozen"))
    with pytest.raises(ValueError, match="stats_id=3: there are rows 0 to 0"), using_task(net, 3):
        pass
    with pytest.raises(ValueError, match="expected a row's number or 'batch', got 'bacth'"), using_task(net, "bacth"):
        pass
    assert all(layer.row is None for layer in batchnorm_layers(net).values())


@pytest.mark.parametrize("kind", [BatchNormLayer, VirtualBatchNormLayer])
def test_any_integer_chooses_a_row(kind: Any) -> None:
    """Also numpy's; what is no integer is refused."""
    layer = kind(4)
    layer.checkpoint_stats()
    rows: list[Any] = [1, np.int64(1), np.arange(2)[1], torch.tensor(1), torch.tensor(1, dtype=torch.int32)]
    for row in rows:
        torch.testing.assert_close(layer.read(row), layer.read(1))
        with using_task(layer, row):
            torch.testing.assert_close(layer.read(None), layer.read(1))
    for wrong in (1.0, torch.tensor(1.0), [1]):
        with pytest.raises(TypeError, match="integer"):
            layer.read(wrong)


@every_algebra
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised inside torch's compiler
@pytest.mark.parametrize("choose", ["stats_id", "using_task"])
def test_another_row_compiles_nothing(algebra: Any, choose: str) -> None:
    """A compiled training step takes any row."""
    counter = CompileCounter()
    layer = BatchNormLayer(8, algebra=algebra)
    for _ in range(4):
        layer.checkpoint_stats()
    torch._dynamo.reset()

    @torch.compile(backend=counter, fullgraph=True)
    def step(x: Tensor, **options: Any) -> Tensor:
        y: Tensor = layer(x, **options).square().sum()
        return y

    seen = []
    for row in range(5):
        x = (torch.randn(6, 8, 3) + row).requires_grad_()
        if choose == "stats_id":
            step(x, stats_id=torch.tensor(row)).backward()
        else:
            with using_task(layer, row):
                step(x).backward()
        seen.append(counter.frame_count)
        mean, _ = layer.get_stats(row)
        torch.testing.assert_close(mean, 0.1 * x.detach().mean((0, 2)))
    assert seen == [1] * 5


@pytest.mark.parametrize("algebra", ["complex"])
@pytest.mark.parametrize("kind", [BatchNormLayer, VirtualBatchNormLayer])
@pytest.mark.parametrize("space", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_complex_numbers_are_taken_as_they_are(algebra: str, kind: Any, space: tuple[int, ...]) -> None:
    """Complex input [N, Q, *S] gives the complex numbers that its parts, component-major, give; gradients included."""
    layer = kind(8, algebra=algebra).double()
    x = torch.randn(9, 4, *space, dtype=torch.complex128, requires_grad=True)
    options = {"stats_id": 0}
    with using_task(layer, BATCH):
        y, parts = layer(x), layer(complex_to_real(x))
    assert y.dtype == torch.complex128
    assert y.shape == x.shape
    torch.testing.assert_close(complex_to_real(y), parts)
    (got,) = torch.autograd.grad(y.abs().pow(3).sum(), x)
    (expected,) = torch.autograd.grad((parts[:, :4].square() + parts[:, 4:].square()).pow(1.5).sum(), x)
    torch.testing.assert_close(got, expected)
    with pytest.raises(ValueError, match=r"expected a complex x of shape \[N, 4, ...\] with 2 to 5 axes, got \(9, 8"):
        layer(torch.cat([x, x], 1), **options)


# ---------------------------------------------------------------------- measuring


@every_algebra
@pytest.mark.parametrize("stats", ["tracked", "learnable", "distilled"])
def test_recalibration(algebra: Any, stats: Any) -> None:
    """A row becomes the mean and unbiased covariance of all batches together; other rows and the mode stay."""
    net = nn.Sequential(nn.Dropout(0.5), BatchNormLayer(8, algebra=algebra, stats=stats, eps=1e-12)).double().train()
    layer = batchnorm_layers(net)["1"]
    layer.checkpoint_stats()
    before = layer.get_stats(0)
    x = samples(50, 8, 3) + 100
    recalibrate(net, x.split(13), 1)
    mean, cov = moments(x, ALGEBRAS[algebra].dim)
    torch.testing.assert_close(layer.get_stats(1), (mean, cov.reshape(layer.hyper_shapes["running_var"])))
    torch.testing.assert_close(layer.get_stats(0), before)
    assert all(module.training for module in net.modules())
    assert layer.row is None


def test_recalibration_of_fused_layers() -> None:
    """Their rows become the statistics of the convolution's output, as of the two layers one after the other."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 8, 3), BatchNormLayer(8, algebra="quaternion")
    batches = [torch.randn(9, 4, 5, 5) for _ in range(2)]
    found = []
    for net in (nn.Sequential(ConvBatchNorm(conv, norm)), nn.Sequential(conv, norm)):
        recalibrate(net, batches)
        found.append(norm.get_stats(0))
    torch.testing.assert_close(*found)
    assert not found[0][0].equal(torch.zeros(8))


class _Branches(nn.Module):
    """A net of two norm layers, of which the second runs in training only; the first gets its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.extra = BatchNormLayer(4), BatchNormLayer(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.main(x=x)
        return y + self.extra(x) if self.training else y


def test_recalibration_passes_over_layers_that_do_not_run() -> None:
    net, x = _Branches(), torch.randn(9, 4)
    before = net.extra.get_stats(0)
    recalibrate(net, [x])
    torch.testing.assert_close(net.main.get_stats(0)[0], x.mean(0))
    torch.testing.assert_close(net.extra.get_stats(0), before)


@pytest.mark.parametrize(
    ("stats", "row", "batches", "message"),
    [("generated", 0, 1, "a hypernetwork writes"), ("tracked", 1, 1, "stats_id=1"), ("tracked", 0, 0, "at least one batch")],
)
def test_recalibration_refuses(stats: Any, row: int, batches: int, message: str) -> None:
    net = nn.Sequential(BatchNormLayer(8, stats=stats))
    with pytest.raises(ValueError, match=message):
        recalibrate(net, [torch.randn(9, 8)] * batches, row)


@pytest.mark.parametrize(("algebra", "stats"), list(product(ALGEBRAS, ["tracked", "learnable"])))
def test_memory_of_rows_survives_a_state_dict(algebra: Any, stats: Any) -> None:
    """Seven rows load into a layer built with one, in place of what it had, and stay what they were: buffers or parameters."""
    source, target = (BatchNormLayer(8, algebra=algebra, stats=stats) for _ in range(2))
    for row in range(7):
        if row:
            source.checkpoint_stats()
        source(torch.randn(9, 8) + row, stats_id=row)
    target.load_state_dict(source.state_dict())
    assert target.num_stats == 7
    assert dict(target.named_parameters()).keys() == dict(source.named_parameters()).keys()
    for row in range(7):
        torch.testing.assert_close(target.get_stats(row), source.get_stats(row))


@pytest.mark.parametrize(("saved", "built"), list(product(STATS, STATS)))
def test_states_of_other_modes(saved: Any, built: Any) -> None:
    """Whatever a layer finds of its own in the state of another mode, all its tensors have as many rows afterwards."""
    source, target = BatchNormLayer(8, algebra="complex", stats=saved), BatchNormLayer(8, algebra="complex", stats=built)
    if source.num_stats:
        source.checkpoint_stats()
    target.load_state_dict(source.state_dict(), strict=False)
    assert len({len(value) for value in target.rows.values()}) <= 1
    target(torch.randn(9, 8), stats_id=target.num_stats - 1)


def test_a_state_that_does_not_fit_is_refused() -> None:
    """As torch's for a layer that whitens, which no variances can tell how to; the layer stays whole."""
    layer = BatchNormLayer(8, algebra="complex")
    with pytest.raises(RuntimeError, match="size mismatch for running_mean"):
        layer.load_state_dict(nn.BatchNorm1d(8).state_dict())
    layer(torch.randn(9, 8))
    assert layer.num_stats == 1
