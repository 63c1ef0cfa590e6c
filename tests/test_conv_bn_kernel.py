"""The kernels of fused convolution and batch norm: derivatives, statistics, and the ways to compute them."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hnetcl.compiling import can_compile
from hnetcl.kernels import batch_norm as closed_form
from hnetcl.kernels.backends import REFERENCE, Kernel, fused
from hnetcl.kernels.conv_bn import Convolution, conv_batch_norm, conv_normalize
from hnetcl.kernels.passes import BLOCKS, COMPILED, PLAIN, Passes
from hnetcl.kernels.whitening import WHITENINGS

every_case = pytest.mark.parametrize(("d", "whitening"), list(product([1, 2, 4, 8], WHITENINGS)))
both_statistics = pytest.mark.parametrize("given", [False, True], ids=["batch", "given"])
CONV = Convolution((1,), (1,), (1,))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assert_close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)


def inputs(d: int, given: bool) -> dict[str, Any]:
    """Leaves for one number of d components, made out of a short signal."""
    values = {"x": torch.randn(4, 2, 5), "conv_weight": torch.randn(d, 2, 3), "conv_bias": torch.randn(d)}
    values |= {"gamma": torch.randn(1, d, d), "beta": torch.randn(d)}
    if given:
        root = torch.randn(1, d, d)
        values |= {"mean": torch.randn(d), "cov": root @ root.mT + torch.eye(d)}
    return {name: value.double().requires_grad_() for name, value in values.items()}


def run(values: dict[str, Any], whitening: str, passes: Passes = BLOCKS) -> tuple[Tensor, ...]:
    options: dict[str, Any] = {"conv": CONV, "d": len(values["conv_bias"]), "eps": 1e-2, "whitening": whitening}
    if "cov" not in values:
        return conv_batch_norm(**values, **options, passes=passes)[:3]
    cov = (values["cov"] + values["cov"].mT) / 2  # only its symmetric part counts
    return (conv_normalize(**{**values, "cov": cov}, **options, passes=passes),)


def outcome(y: Tensor, values: dict[str, Any]) -> list[Tensor]:
    """y and the gradients of a form that is not linear in it."""
    return [y.detach(), *torch.autograd.grad(y.pow(3).mean(), list(values.values()), retain_graph=True)]


@every_case
@both_statistics
def test_gradients(d: int, whitening: str, given: bool) -> None:
    """The gradients are the derivatives."""
    values = inputs(d, given)

    def function(*leaves: Tensor) -> Tensor:
        return run(dict(zip(values, leaves, strict=True)), whitening)[0]

    assert torch.autograd.gradcheck(function, tuple(values.values()), fast_mode=d > 2)


@every_case
def test_equals_batch_norm_of_the_convolution(d: int, whitening: str) -> None:
    """In output, mean and biased covariance, which carry no graph."""
    v = inputs(d, given=False)
    z = F.conv1d(v["x"], v["conv_weight"], v["conv_bias"], padding=1)
    y, mean, cov = run(v, whitening)
    assert_close((y, mean, cov), closed_form.batch_norm(z, v["gamma"], v["beta"], d=d, eps=1e-2, whitening=whitening)[:3])
    assert not mean.requires_grad
    assert not cov.requires_grad


def test_gradients_that_nobody_needs_are_not_computed() -> None:
    """Of a convolution."""
    conv, x, weight = Convolution((1,), (0,), (1,)), torch.randn(2, 3, 5), torch.randn(4, 3, 2)
    g = torch.randn(conv.output_shape(x, weight))
    for needed in ((True, True), (True, False), (False, True), (False, False)):
        assert [gradient is not None for gradient in conv.gradients(g, x, weight, needed)] == [*needed]


def test_synchronised_is_the_same_on_one_rank(tmp_path: Path) -> None:
    """And counts the values per channel."""
    values = inputs(4, given=False)
    options: dict[str, Any] = {**values, "conv": CONV, "d": 4, "eps": 1e-2, "whitening": "zca"}
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        *got, count = conv_batch_norm(**options, group=dist.group.WORLD)
        gradients = outcome(got[0], values)
    finally:
        dist.destroy_process_group()
    expected = run(values, "zca")
    assert count == expected[0].numel() // 4
    assert_close(tuple(got), expected)
    assert_close(gradients, outcome(expected[0], values))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised inside torch's compiler
@both_statistics
def test_compiled_passes_compute_the_same(given: bool) -> None:
    """With the convolution's output in the place of x."""
    if not can_compile(torch.device("cpu")):
        pytest.skip("torch.compile does not work here")
    values = inputs(2, given)
    plain, compiled = (outcome(run(values, "zca", passes)[0], values) for passes in (BLOCKS, COMPILED))
    assert_close(compiled, plain)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised inside torch's compiler
@both_statistics
def test_can_be_compiled_whole(given: bool) -> None:
    """torch.compile finds one graph, which computes the same."""
    values = inputs(2, given)
    torch.compiler.reset()
    whole = torch.compile(lambda v: run(v, "zca")[0], fullgraph=True, backend="aot_eager")
    assert_close(outcome(whole(values), values), outcome(run(values, "zca")[0], values))


def test_fused_kernels_keep_their_passes() -> None:
    """So that the chosen backend computes."""
    v, seen = inputs(2, given=False), []

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(tuple(x.shape))
        mean, cov = PLAIN.moments(x)
        return mean, cov

    passes = Passes(moments, PLAIN.affine, PLAIN.gradient_sums, PLAIN.gradient)
    kernel = Kernel(closed_form.batch_norm, closed_form.normalize, passes=passes)
    fused(kernel, CONV, v["conv_weight"], None).batch_norm(v["x"], None, None, d=2, eps=1e-5, whitening="zca")
    assert seen == [(4, 2, 1, 5)]


@both_statistics
def test_the_reference_is_composed(given: bool) -> None:
    """It gives the same, and can be differentiated twice."""
    v = inputs(2, given)
    kernel = fused(REFERENCE, CONV, v["conv_weight"], v["conv_bias"])
    rest: dict[str, Any] = {name: value for name, value in v.items() if not name.startswith("conv")}
    if given:
        rest["cov"] = (v["cov"] + v["cov"].mT) / 2
    result: Any = (kernel.normalize if given else kernel.batch_norm)(**rest, d=2, eps=1e-2, whitening="zca")
    y = result if given else result[0]
    assert_close(outcome(y, v), outcome(run(v, "zca")[0], v))
    (gradient,) = torch.autograd.grad(y.pow(3).sum(), v["conv_weight"], create_graph=True)
    assert torch.autograd.grad(gradient.pow(2).sum(), v["x"])[0].any()
