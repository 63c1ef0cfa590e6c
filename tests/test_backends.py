"""The ways to compute the passes against the reference, and when each is chosen."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hnetcl.bn import BatchNormLayer
from hnetcl.compiling import can_compile
from hnetcl.kernels import backends, passes, reference
from hnetcl.kernels import batch_norm as closed_form
from hnetcl.kernels.backends import CLOSED_FORM, COMPILED, REFERENCE, select
from hnetcl.kernels.passes import BLOCKS, PLAIN, Passes

SHAPES = [(7, 3), (5, 1, 6), (4, 5, 3, 7), (1, 2, 9, 1), (2, 2, 3, 1, 5)]  # N, Q, *S
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture
def compiler() -> None:
    """Skips where there is none; asked only when a test needs it, for asking compiles something."""
    if not can_compile(torch.device("cpu")):
        pytest.skip("torch.compile does not work here")


needs_compiler = pytest.mark.usefixtures("compiler")
compiling = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised inside torch's compiler


def inputs(shape: tuple[int, ...], d: int, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(0)
    n, q, *space = shape
    root = torch.randn(q, d, d)
    values = {
        "x": torch.randn(n, d * q, *space) * 2 + 5,
        "mean": torch.randn(d * q),
        "cov": root @ root.mT + torch.eye(d),
        "gamma": torch.randn(q, d, d),
        "beta": torch.randn(d * q),
    }
    rest = torch.float64 if dtype == torch.float64 else torch.float32
    return {name: value.to(dtype if name == "x" else rest).requires_grad_() for name, value in values.items()}


def outcome(normalize: Callable[..., Any], given: bool, v: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """y, the batch's statistics, and all gradients of a form that is not linear in y."""
    if given:
        cov = (v["cov"] + v["cov"].mT) / 2  # only its symmetric part counts
        results = [normalize(**{**v, "cov": cov}, **options)]
    else:
        results = list(normalize(v["x"], v["gamma"], v["beta"], **options)[:3])
    results[0].double().pow(3).mean().backward()
    return [*(r.detach() for r in results), *(leaf.grad for leaf in v.values() if leaf.grad is not None)]


def assert_equals_reference(
    passes: Passes, d: int, whitening: str, dtype: torch.dtype, shapes: Sequence[tuple[int, ...]] = SHAPES
) -> None:
    options: dict[str, Any] = {"d": d, "eps": 0.1, "whitening": whitening}
    for shape in shapes:
        for given in (False, True):
            slow, fast = (k.normalize if given else k.batch_norm for k in (reference, closed_form))
            expected = outcome(slow, given, inputs(shape, d, dtype), **options)
            actual = outcome(fast, given, inputs(shape, d, dtype), **options, passes=passes)
            assert [a.dtype for a in actual] == [e.dtype for e in expected]
            for a, e in zip(actual, expected, strict=True):
                scale = float(e.abs().max()) + 1e-6
                torch.testing.assert_close(a / scale, e / scale, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("passes", [PLAIN, BLOCKS], ids=["plain", "blocks"])
@pytest.mark.parametrize("d", [2, 4, 8])
@pytest.mark.parametrize("whitening", ["zca", "cholesky", "naive"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_eager_passes_equal_the_reference(passes: Passes, d: int, whitening: str, dtype: torch.dtype) -> None:
    """In outputs and gradients, over odd shapes."""
    assert_equals_reference(passes, d, whitening, dtype)


@pytest.mark.slow
@needs_compiler
@compiling
@pytest.mark.parametrize(
    ("d", "whitening", "dtype", "shapes"),
    [
        (2, "naive", torch.float32, SHAPES[:4]),  # more kinds of tensor than torch compiles for one function
        (4, "cholesky", torch.bfloat16, SHAPES[2:3]),
        (4, "zca", torch.float64, SHAPES[2:3]),
        (2, "zca", torch.float32, SHAPES[2:3]),
    ],
    ids=str,
)
def test_compiled_passes_equal_the_reference(
    d: int, whitening: str, dtype: torch.dtype, shapes: Sequence[tuple[int, ...]]
) -> None:
    """In outputs and gradients."""
    assert_equals_reference(passes.COMPILED, d, whitening, dtype, shapes)


@pytest.mark.parametrize("size", [1, 40, 150, 1000, 2**19])
def test_the_size_of_a_block_does_not_matter(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of less than a number, of some samples of a number, of several numbers: always the same sums."""
    monkeypatch.setattr(passes, "BLOCK_SIZE", size)
    assert_equals_reference(BLOCKS, 4, "cholesky", torch.float64)


def test_passes_do_not_care_for_autocast() -> None:
    """Sums and matrices keep their precision where autocast would halve it."""
    v = inputs((9, 3, 4), 4, torch.float32)
    options: dict[str, Any] = {"d": 4, "eps": 0.1, "whitening": "zca"}
    plain = outcome(closed_form.batch_norm, False, v, **options), outcome(closed_form.normalize, True, v, **options)
    for leaf in v.values():
        leaf.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        cast = outcome(closed_form.batch_norm, False, v, **options), outcome(closed_form.normalize, True, v, **options)
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


@needs_compiler
@compiling
def test_another_size_compiles_nothing() -> None:
    """Sizes are data for compiled passes."""
    options: dict[str, Any] = {"d": 2, "eps": 1e-5, "whitening": "naive", "passes": passes.COMPILED}
    graphs = []
    for n in (5, 8, 11, 3):
        outcome(closed_form.batch_norm, False, inputs((n, 3 + n, 2 + n), 2, torch.float32), **options)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[1:] == graphs[:-1]


def test_auto_compiles_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large numbers of more than one component; what the user names is what is used."""
    monkeypatch.setattr(backends, "_can_compile", lambda device: True)
    small, large = torch.empty(4, 4), torch.empty(1).expand(backends.AUTO_COMPILED["cpu"])
    assert select("auto", small, 4) is CLOSED_FORM
    assert select("auto", large, 4) is COMPILED
    assert select("auto", large, 1) is CLOSED_FORM
    assert select("compiled", small, 2) is COMPILED
    assert select("closed_form", large, 4) is CLOSED_FORM
    assert select("reference", large, 1) is REFERENCE


def test_without_a_compiler_there_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the closed form computes."""
    backends._can_compile.cache_clear()
    monkeypatch.setattr(backends, "can_compile", lambda device: False)
    try:
        with pytest.warns(UserWarning, match="torch.compile does not work for cpu") as caught:
            chosen = [select("compiled", torch.empty(4), 4) for _ in range(3)]
    finally:
        backends._can_compile.cache_clear()
    assert len(caught) == 1
    assert chosen == [CLOSED_FORM] * 3


@pytest.mark.slow
def test_a_missing_compiler_is_noticed(tmp_path: Path) -> None:
    """What torch says without a C++ compiler is understood."""
    code = "import torch; from hnetcl.compiling import can_compile; print(can_compile(torch.device('cpu')))"
    alone = {**os.environ, "PATH": str(tmp_path), "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=alone, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_blocks_take_a_share_of_the_memory() -> None:
    """A pass allocates what it returns and a few blocks, not tensors of the input's size."""
    x = torch.randn(64, 4, 16, 256)
    mean, cov = BLOCKS.moments(x)
    with torch.profiler.profile(profile_memory=True) as profile:
        BLOCKS.moments(x)
    allocated = sum(e.self_cpu_memory_usage for e in profile.key_averages() if e.self_cpu_memory_usage > 0)
    assert allocated <= 1.1 * 4 * passes.BLOCK_SIZE + 4 * (mean.numel() + 4 * cov.numel())


@pytest.mark.slow
@needs_compiler
@compiling
@pytest.mark.parametrize("training", [True, False])
def test_the_compiled_layer_does_as_the_plain_one(training: bool) -> None:
    """With channels last, with several gradients at once, and with an empty batch."""
    torch.manual_seed(0)
    layers = [BatchNormLayer(8, algebra="quaternion", backend=name).train(training) for name in ("compiled", "closed_form")]
    x = torch.randn(4, 8, 3, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    many, found = torch.randn(3, *x.shape), []
    for layer in layers:
        y = layer(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        leaves = [x, *layer.parameters()]
        found.append([y, *torch.autograd.grad(y, leaves, many, is_grads_batched=True)])
        before = [value.clone() for value in layer.buffers()]
        assert layer(x[:0]).shape == (0, 8, 3, 5)
        assert all(map(torch.equal, layer.buffers(), before))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
