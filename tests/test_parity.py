"""`BatchNormLayer` beside what others published: the same calls give the same outputs, gradients and running statistics."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hnetcl.bn import BatchNormLayer

EPS = 0.1  # large, so that who adds it where shows
in_both_modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
SHAPES: list[tuple[int, ...]] = [(7, 6), (5, 6, 4), (5, 6, 2, 3), (4, 6, 2, 3, 2)]
every_rank = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def peer(module: str) -> Any:
    """Another library's module; the test is skipped where it is not installed."""
    return pytest.importorskip(module, reason=f"{module.partition('.')[0]} is not installed (it is in the extra `peers`)")


def samples(*shape: int) -> Tensor:
    """Samples [N, C, *S] in float64 whose channels are correlated, off centre and of different scales."""
    mixing = torch.randn(shape[1], shape[1], dtype=torch.float64)
    return (torch.einsum("cd,nd...->nc...", mixing, torch.randn(shape, dtype=torch.float64)) + 3).requires_grad_()


def gradients(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Of a linear form of y that is the same for equal shapes."""
    form = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).cos().reshape(y.shape)
    return torch.autograd.grad((y * form).sum(), inputs)


# hypnettorch 0.0.4 has the real layer only, with eps = 1e-5. See `test_what_hypnettorch_refuses` for where it does not work.


def pair(rows: int = 1, affine: bool = True, momentum: float = 0.1, stats: Any = "tracked") -> tuple[BatchNormLayer, Any]:
    """Our layer of six real channels and hypnettorch's, in float64, with the same random affine map."""
    ours = BatchNormLayer(6, affine=affine, momentum=momentum, stats=stats)
    layer = peer("hypnettorch.utils.batchnorm_layer").BatchNormLayer
    theirs = layer(6, affine=affine, momentum=momentum, track_running_stats=stats == "tracked")
    for _ in range(rows - 1):
        ours.checkpoint_stats()
        theirs.checkpoint_stats()
    if affine:
        for own, other in zip(ours.parameters(), (theirs.scale, theirs.bias), strict=True):
            own.data.normal_()
            other.data.copy_(own.data)
    return ours.double(), theirs.double()


@every_rank
@pytest.mark.parametrize("momentum", [0.1, 0.7])
def test_hypnettorch_rows(shape: tuple[int, ...], momentum: float) -> None:
    """Over training and evaluation on three rows in turn, all values agree."""
    ours, theirs = pair(3, momentum=momentum)
    for training, row in [(True, 0), (True, 1), (True, 1), (False, 0), (False, 2), (True, 0), (False, 1), (False, 0)]:
        x = samples(*shape)
        y, expected = ours.train(training)(x, stats_id=row), theirs.train(training)(x, stats_id=row)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(gradients(y, x, *ours.parameters()), gradients(expected, x, theirs.scale, theirs.bias))
        for k in range(3):
            torch.testing.assert_close(ours.get_stats(k), theirs.get_stats(k))


@every_rank
@in_both_modes
@pytest.mark.parametrize("affine", [True, False])
def test_hypnettorch_given_weights(shape: tuple[int, ...], training: bool, affine: bool) -> None:
    """A given gain and offset take the place of the layer's own, or of none, and get the same gradients."""
    ours, theirs = pair(affine=affine)
    x, weight, bias = samples(*shape), *torch.randn(2, 6, dtype=torch.float64, requires_grad=True).unbind()
    y, expected = (layer.train(training)(x, weight=weight, bias=bias) for layer in (ours, theirs))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradients(y, x, weight, bias), gradients(expected, x, weight, bias))


@every_rank
@in_both_modes
def test_hypnettorch_given_statistics(shape: tuple[int, ...], training: bool) -> None:
    """Given plain statistics have priority over the rows, and are updated in training only."""
    ours, theirs = pair(2)
    x, mean, var = samples(*shape), torch.randn(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64) + 0.5
    own, other = ({"running_mean": mean.clone(), "running_var": var.clone()} for _ in range(2))
    y, expected = ours.train(training)(x, **own), theirs.train(training)(x, **other)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradients(y, x), gradients(expected, x))
    torch.testing.assert_close(own, other)
    assert torch.equal(own["running_mean"], mean) != training
    for k in range(2):
        torch.testing.assert_close(ours.get_stats(k), theirs.get_stats(k))


@every_rank
@in_both_modes
def test_hypnettorch_without_statistics(shape: tuple[int, ...], training: bool) -> None:
    """Without running statistics both normalize by the batch, in evaluation too."""
    ours, theirs = pair(stats="batch")
    x = samples(*shape)
    y, expected = ours.train(training)(x), theirs.train(training)(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradients(y, x), gradients(expected, x))


def more_rows(layer: Callable[..., Any]) -> None:
    saved = layer(6)
    saved.checkpoint_stats()
    layer(6).load_state_dict(saved.state_dict())


def row_after_double(layer: Callable[..., Any]) -> None:
    late = layer(6).double()
    late.checkpoint_stats()
    late(samples(5, 6), stats_id=1)


def gradient_to_statistics(layer: Callable[..., Any]) -> None:
    mean, var = torch.zeros(6, requires_grad=True), torch.ones(6, requires_grad=True)
    y = layer(6).eval()(samples(5, 6).float(), running_mean=mean, running_var=var)
    assert all(gradient.any() for gradient in gradients(y, mean, var))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda layer: layer(6, affine=False)(samples(5, 6).float()), ValueError),
        (lambda layer: layer(6, momentum=None), NotImplementedError),
        (lambda layer: layer(6).hyper_shapes, NotImplementedError),
        (more_rows, RuntimeError),
        (row_after_double, RuntimeError),
        (gradient_to_statistics, RuntimeError),
    ],
    ids=["no affine map", "cumulative average", "hyper_shapes", "loading rows", "row after double()", "gradient to statistics"],
)
def test_what_hypnettorch_refuses(call: Callable[[Callable[..., Any]], Any], error: type[Exception]) -> None:
    """Calls that its documentation promises or leaves open fail there, and work here."""
    with pytest.raises(error):
        call(peer("hypnettorch.utils.batchnorm_layer").BatchNormLayer)
    call(BatchNormLayer)


@in_both_modes
def test_hypnettorch_frozen(training: bool) -> None:
    """Its frozen layer forgets to read its statistics and fails. What it means, up to its 1 / sqrt(1 + eps), is ours."""
    x = samples(5, 6)
    layer = peer("hypnettorch.utils.batchnorm_layer").BatchNormLayer(6, track_running_stats=False, frozen_stats=True)
    with pytest.raises(RuntimeError, match="running_mean must be defined"):
        layer.double().train(training)(x)
    mean, var = (value.double() for value in layer.get_stats(0))
    expected = F.batch_norm(x, mean, var, layer.scale, layer.bias, eps=0)
    torch.testing.assert_close(BatchNormLayer(6, stats="frozen").double().train(training)(x), expected)


# The complex layers take complex input, ours here its real and imaginary parts as two blocks of channels. In training both
# peers whiten by the same matrix as we do. Their running covariance differs:
#   complextorch     starts at I, averages the *biased* covariance with eps on its diagonal, and adds no eps at use
#   complexPyTorch   starts at sqrt(2) I, averages n / (n - 1) times the covariance with eps, and adds eps again at use


class Complextorch:
    """2.1.1. Gamma may be asymmetric, [2, 2, Q]. One complex channel fails in training, one sample gives zeros silently."""

    module = "complextorch.nn"
    names: ClassVar[dict[int, str]] = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}
    dtype, start, unbiased, eps_at_use = torch.float64, 1.0, False, 0.0

    @staticmethod
    def affine(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Ours -> theirs."""
        return weight[:, (0, 1, 1, 2)].T.reshape(2, 2, -1), bias.reshape(2, -1)

    @staticmethod
    def affine_gradients(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Theirs -> ours, where one number stands on both sides of the diagonal."""
        return torch.stack([weight[0, 0], weight[0, 1] + weight[1, 0], weight[1, 1]], 1), bias.reshape(-1)

    @staticmethod
    def statistics(layer: Any) -> tuple[Tensor, Tensor]:
        """Theirs -> ours: mean [C] and covariance [Q, 2, 2]."""
        return layer.running_mean.reshape(-1), layer.running_var.permute(2, 0, 1)


class ComplexPyTorch:
    """0.4. float32 only; Gamma is [Q, 3] as rr, ii, ri and starts at sqrt(2) I.

    Its 1d layer takes no [N, C, L], and its running covariance carries the graph of every step. One sample gives zeros, and
    running statistics that are not finite. `.to(dtype)` cuts the imaginary part off the running mean.
    """

    module = "complexPyTorch.complexLayers"
    names: ClassVar[dict[int, str]] = {2: "ComplexBatchNorm1d", 4: "ComplexBatchNorm2d"}
    dtype, start, unbiased, eps_at_use = torch.float32, 2**0.5, True, EPS

    @staticmethod
    def affine(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Ours -> theirs."""
        return weight[:, (0, 2, 1)], bias.reshape(2, -1).T

    affine_gradients = staticmethod(lambda weight, bias: (weight[:, (0, 2, 1)], bias.T.reshape(-1)))

    @staticmethod
    def statistics(layer: Any) -> tuple[Tensor, Tensor]:
        """Theirs -> ours: mean [C] and covariance [Q, 2, 2]."""
        layer.running_covar = layer.running_covar.detach()  # from the graph that the 1d layer leaves on it
        mean = torch.cat([layer.running_mean.real, layer.running_mean.imag])
        return mean, layer.running_covar[:, (0, 2, 2, 1)].reshape(-1, 2, 2)


COMPLEX = [(library, shape) for library in (Complextorch, ComplexPyTorch) for shape in SHAPES if len(shape) in library.names]


def complex_outcome(layer: Any, library: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Their output and gradients, as ours would be."""
    y = layer(torch.complex(*x.to(library.dtype).chunk(2, 1)))
    y = torch.cat([y.real, y.imag], 1)
    dx, *rest = gradients(y, x, *layer.parameters())
    return tuple(value.double() for value in (y, dx, *library.affine_gradients(*rest)))


def our_outcome(layer: BatchNormLayer, x: Tensor, **given: Tensor) -> tuple[Tensor, ...]:
    y = layer(x, **given)
    return y, *gradients(y, x, *layer.parameters())


@pytest.mark.parametrize(("library", "shape"), COMPLEX)
@pytest.mark.parametrize("momentum", [0.2, None])
def test_complex_layers(library: Any, shape: tuple[int, ...], momentum: float | None) -> None:
    """Four steps and an evaluation: outputs, gradients and, by each library's conventions, the running statistics."""
    theirs = getattr(peer(library.module), library.names[len(shape)])(3, eps=EPS, momentum=momentum)
    ours = BatchNormLayer(6, algebra="complex", eps=EPS, momentum=momentum)
    for own in ours.parameters():
        own.data.normal_()
    for other, value in zip(theirs.parameters(), library.affine(*ours.parameters()), strict=True):
        other.data.copy_(value)
    ours.double()
    tolerance = 1e-4
    if library.dtype == torch.float64:
        theirs.double()
        tolerance = 1e-9
    assert_close = partial(torch.testing.assert_close, atol=tolerance, rtol=tolerance)

    steps, n, eye = 4, math.prod(shape) // 6, torch.eye(2, dtype=torch.float64)
    for _ in range(steps):
        x = samples(*shape)
        assert_close(complex_outcome(theirs, library, x), our_outcome(ours, x))

    mean, cov = ours.get_stats(0)
    left = 0.0 if momentum is None else (1 - momentum) ** steps  # the share of what the running statistics started at
    biased = (cov - left * eye) * (n - 1) / n + (1 - left) * EPS * eye
    their_mean, their_cov = (value.double() for value in library.statistics(theirs))
    assert_close(their_mean, mean)
    assert_close(their_cov, left * library.start * eye + biased * (n / (n - 1) if library.unbiased else 1))

    x = samples(*shape)
    given = {"running_mean": their_mean, "running_var": their_cov + (library.eps_at_use - EPS) * eye}
    assert_close(complex_outcome(theirs.eval(), library, x), our_outcome(ours.eval(), x, **given))
