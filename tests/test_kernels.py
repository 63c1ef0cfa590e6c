"""Batch norm kernels: the closed form against the reference, and the laws of whitening."""

from collections.abc import Callable
from functools import partial
from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from hnetcl.kernels import batch_norm as closed_form
from hnetcl.kernels import reference
from hnetcl.kernels.whitening import WHITENINGS

EPS = 1e-5
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
every_case = pytest.mark.parametrize(("d", "whitening"), list(product([1, 2, 4, 8], WHITENINGS)))
both_statistics = pytest.mark.parametrize("given", [False, True], ids=["batch", "given"])
both_kernels = pytest.mark.parametrize("kernel", [closed_form, reference], ids=["closed_form", "reference"])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def spd(q: int, d: int) -> Tensor:
    """Symmetric positive definite matrices [q, d, d]."""
    root = randn(q, d, d)
    return root @ root.mT + torch.eye(d, dtype=torch.float64) / 2


def leaves(
    d: int, shape: tuple[int, ...], given: bool, affine: bool = True, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """What a kernel differentiates by: x, and where wanted gamma, beta, the mean and the covariance."""
    q, c = shape[1] // d, shape[1]
    values = {"x": 2 * randn(*shape) + 3}
    if affine:
        values |= {"gamma": randn(q, d, d), "beta": randn(c)}
    if given:
        values |= {"mean": randn(c), "cov": spd(q, d)}
    return {name: value.to(dtype).requires_grad_() for name, value in values.items()}


def outputs(kernel: ModuleType, values: dict[str, Tensor], d: int, whitening: str) -> tuple[Tensor, ...]:
    """y, and the batch's statistics where the kernel takes them itself; only the symmetric part of `cov` counts."""
    options: dict[str, Any] = {"d": d, "eps": EPS, "whitening": whitening}
    gamma, beta = values.get("gamma"), values.get("beta")
    if "cov" not in values:
        y, mean, cov, _ = kernel.batch_norm(values["x"], gamma, beta, **options)
        return y, mean, cov
    cov = (values["cov"] + values["cov"].mT) / 2
    return (kernel.normalize(values["x"], values["mean"], cov, gamma, beta, **options),)


def function(kernel: ModuleType, values: dict[str, Tensor], d: int, whitening: str) -> Callable[..., Tensor]:
    """y as a function of the values in their order."""
    return lambda *v: outputs(kernel, dict(zip(values, v, strict=True)), d, whitening)[0]


def gradients(y: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of one random linear form of y."""
    torch.manual_seed(1)
    form = randn(*y.shape).to(y.dtype)
    return dict(zip(values, torch.autograd.grad((y * form).sum(), list(values.values())), strict=True))


def whitening_matrix(kernel: ModuleType, cov: Tensor, whitening: str, eps: float = 0.0) -> Tensor:
    """W [q, d, d], read off the images of the basis vectors."""
    q, d, _ = cov.shape
    basis = torch.eye(d, dtype=cov.dtype).repeat_interleave(q, 1)
    y: Tensor = kernel.normalize(basis, cov.new_zeros(d * q), cov, None, None, d=d, eps=eps, whitening=whitening)
    return y.reshape(d, d, q).permute(2, 1, 0)


@every_case
@both_statistics
@pytest.mark.parametrize("affine", [False, True], ids=["bare", "affine"])
@pytest.mark.parametrize("size", [(37,), (11, 5), (5, 3, 7), (3, 2, 3, 5)], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_closed_form_equals_reference(
    d: int, whitening: str, given: bool, affine: bool, size: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Outputs, batch statistics and all gradients of both kernels agree."""
    n, *space = size
    values = leaves(d, (n, 3 * d, *space), given, affine, dtype)
    fast, slow = (outputs(kernel, values, d, whitening) for kernel in (closed_form, reference))
    assert_close = partial(torch.testing.assert_close, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert_close(fast, slow)
    assert_close(gradients(fast[0], values), gradients(slow[0], values))
    assert not any(statistic.requires_grad for statistic in fast[1:])


@every_case
@both_statistics
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_summed_in_float32(d: int, whitening: str, given: bool, dtype: torch.dtype) -> None:
    """Half-precision x gives the float32 result rounded once, in x's dtype, with finite gradients in each input's dtype."""
    values = leaves(d, (9, 3 * d, 5, 3), given, dtype=torch.float32)
    values["x"] = values["x"].detach().to(dtype).requires_grad_()
    y = outputs(closed_form, values, d, whitening)[0]
    exact = outputs(closed_form, values | {"x": values["x"].float()}, d, whitening)[0]
    torch.testing.assert_close(y, exact.to(dtype))
    for name, gradient in gradients(y, values).items():
        assert gradient.dtype == values[name].dtype
        assert gradient.isfinite().all()


@every_case
@both_statistics
def test_closed_form_gradient(d: int, whitening: str, given: bool) -> None:
    """The closed form's gradient is the derivative."""
    values = leaves(d, (5, d, 3), given)
    assert torch.autograd.gradcheck(function(closed_form, values, d, whitening), tuple(values.values()))


@every_case
@both_statistics
def test_reference_gradients(d: int, whitening: str, given: bool) -> None:
    """The reference can be differentiated twice."""
    values = leaves(d, (11, d), given)
    y, inputs = function(reference, values, d, whitening), tuple(values.values())
    assert torch.autograd.gradcheck(y, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(y, inputs, fast_mode=True)


@every_case
@both_kernels
def test_whitening_whitens(d: int, whitening: str, kernel: ModuleType) -> None:
    """W V W^T = I; `zca` is symmetric, `cholesky` lower triangular with positive diagonal. `naive` sees the diagonals only."""
    cov = spd(5, d)
    w = whitening_matrix(kernel, cov, whitening)
    assert (w.diagonal(dim1=-2, dim2=-1) > 0).all()
    eye = torch.eye(d, dtype=torch.float64).expand_as(cov)
    torch.testing.assert_close(w, {"zca": w.mT, "cholesky": w.tril(), "naive": w * eye}[whitening])
    torch.testing.assert_close(w @ (cov * eye if whitening == "naive" else cov) @ w.mT, eye)


@both_kernels
def test_complex_zca_is_trabelsis(kernel: ModuleType) -> None:
    """With s = sqrt(det V), t = sqrt(tr V + 2 s): W = [[Vii + s, -Vri], [-Vri, Vrr + s]] / (s t)."""
    cov = spd(50, 2)
    rr, ri, ii = cov[:, 0, 0], cov[:, 0, 1], cov[:, 1, 1]
    s = (rr * ii - ri**2).sqrt()
    t = (rr + ii + 2 * s).sqrt()
    expected = torch.stack([ii + s, -ri, -ri, rr + s], -1).reshape(-1, 2, 2) / (s * t)[:, None, None]
    torch.testing.assert_close(whitening_matrix(kernel, cov, "zca"), expected)


@every_case
@both_statistics
def test_equal_eigenvalues_have_gradients(d: int, whitening: str, given: bool) -> None:
    """Where all eigenvalues coincide the gradients are finite and the reference's."""
    signs = torch.cat([torch.eye(d), -torch.eye(d)]).double()  # covariance I / d
    values = {"x": signs.repeat_interleave(2, 1).requires_grad_()}
    if given:
        cov = torch.eye(d, dtype=torch.float64).repeat(2, 1, 1)
        values |= {"mean": torch.zeros(2 * d, dtype=torch.float64).requires_grad_(), "cov": cov.requires_grad_()}
    fast, slow = (gradients(outputs(k, values, d, whitening)[0], values) for k in (closed_form, reference))
    torch.testing.assert_close(fast, slow)


@every_case
def test_singular_covariance_is_lifted_by_its_rounding(d: int, whitening: str) -> None:
    """Both kernels add eps + 4 u tr(V) / d to the diagonal, u the unit of x's dtype, and differentiate through it alike.

    `naive` needs no more than eps.
    """
    cov = torch.zeros(3, d, d)
    cov[:, 0, 0] = 1e4
    shift = EPS + (0 if whitening == "naive" else 4 * 2**-23 * 1e4 / d)
    for kernel in (closed_form, reference):
        w = whitening_matrix(kernel, cov, whitening, EPS)
        torch.testing.assert_close(w.diagonal(dim1=1, dim2=2) ** -2, cov.diagonal(dim1=1, dim2=2) + shift)
    values = leaves(d, (9, 3 * d), given=True, dtype=torch.float32) | {"cov": cov.requires_grad_()}
    fast, slow = (gradients(outputs(kernel, values, d, whitening)[0], values) for kernel in (closed_form, reference))
    torch.testing.assert_close(fast, slow, atol=0, rtol=1e-3)


HARD: dict[str, Callable[[Tensor], Tensor]] = {
    "small": lambda x: 1e-3 * x,
    "large": lambda x: 1e3 * x,
    "far": lambda x: x + 1e4,
    "small and far": lambda x: 1e-3 * x + 10,
    "equal parts": lambda x: x[:, :1].expand_as(x),
    "equal small parts": lambda x: 1e-3 * x[:, :1].expand_as(x),
    "equal parts, std 30": lambda x: 30 * x[:, :1].expand_as(x),
    "equal large parts": lambda x: 1e3 * x[:, :1].expand_as(x),
    "real": lambda x: torch.cat([x[:, :1], 0 * x[:, 1:]], 1),
    "dependent large parts": lambda x: 1e3 * x[:, :1] * torch.linspace(0.3, 1, x.shape[1])[:, None, None, None],
    "large and real": lambda x: torch.cat([1e3 * x[:, :1], 0 * x[:, 1:]], 1),
    "zero": lambda x: 0 * x,
    "constant": lambda x: 0 * x + 3.3,
    "large constant": lambda x: 0 * x + 1e4,
}


@every_case
@pytest.mark.parametrize("name", HARD)
def test_hard_inputs_stay_finite(d: int, whitening: str, name: str) -> None:
    """In float32, batch and given statistics of hard inputs give finite gradients and outputs of at most unit variance."""
    x = HARD[name](torch.randn(16, d, 3, 4, 4)).flatten(1, 2).requires_grad_()
    values = {"x": x, "gamma": torch.randn(3, d, d).requires_grad_(), "beta": torch.randn(3 * d).requires_grad_()}
    bare, mean, cov = outputs(closed_form, {"x": x}, d, whitening)
    assert bare.square().mean() < 1.01
    given = values | {"mean": mean.clone().requires_grad_(), "cov": cov.clone().requires_grad_()}
    for case in (values, given):
        y = outputs(closed_form, case, d, whitening)[0]
        assert y.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients(y, case).values())


@every_case
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_values_that_are_not_finite_spoil_their_number_only(d: int, whitening: str, value: float) -> None:
    """Its output is nan, as torch's batch norm gives, and nothing raises: a loss scaler steps over such a batch."""
    x = torch.randn(9, d, 3, 4)
    x[0, 0, 1, 0] = value
    y = closed_form.batch_norm(x.flatten(1, 2).requires_grad_(), None, None, d=d, eps=EPS, whitening=whitening)[0]
    y.sum().backward()
    assert y.reshape(9, d, 3, 4)[:, :, [0, 2]].isfinite().all()
    assert y.reshape(9, d, 3, 4)[:, 0, 1].isnan().all()


@every_case
@both_statistics
def test_closed_form_saves_its_input_only(d: int, whitening: str, given: bool) -> None:
    """The backward pass keeps x and small matrices."""
    values = leaves(d, (16, 16, 48, 48), given, dtype=torch.float32)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = outputs(closed_form, values, d, whitening)[0]
    assert y.requires_grad
    assert values["x"].nbytes <= sum(saved.values()) <= 1.01 * values["x"].nbytes


@every_case
def test_normalize_can_be_mapped(d: int, whitening: str) -> None:
    """`vmap` of `normalize` over statistics, affine maps and inputs, or over all but a shared input, equals a loop."""
    values = [leaves(d, (6, 2 * d, 3), given=True) for _ in range(3)]
    names = ("mean", "cov", "gamma", "beta")
    stacked = [torch.stack([v[name].detach() for v in values]) for name in names]
    x = torch.stack([v["x"].detach() for v in values])

    def y(x: Tensor, *rest: Any) -> Tensor:
        return closed_form.normalize(x, *rest, d=d, eps=EPS, whitening=whitening)

    each = [y(*row) for row in zip(x, *stacked, strict=True)]
    torch.testing.assert_close(torch.func.vmap(y)(x, *stacked), torch.stack(each))
    shared = [y(x[0], *row) for row in zip(*stacked, strict=True)]
    torch.testing.assert_close(torch.func.vmap(y, in_dims=(None, 0, 0, 0, 0))(x[0], *stacked), torch.stack(shared))

    def bare(x: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
        return y(x, mean, cov, None, None)

    each = [bare(*row) for row in zip(x, *stacked[:2], strict=True)]
    torch.testing.assert_close(torch.func.vmap(bare)(x, *stacked[:2]), torch.stack(each))


@every_case
def test_gradients_can_be_mapped(d: int, whitening: str) -> None:
    """`vmap` of `grad` by statistics and by an input equals a loop."""

    def loss(v: dict[str, Tensor]) -> Tensor:
        return outputs(closed_form, v, d, whitening)[0].pow(3).mean()

    each = [{k: t.detach() for k, t in leaves(d, (6, 2 * d, 3), given=True).items()} for _ in range(2)]
    expected = [torch.func.grad(loss)(v) for v in each]
    mapped = torch.func.vmap(torch.func.grad(loss))({name: torch.stack([v[name] for v in each]) for name in each[0]})
    torch.testing.assert_close(mapped, {name: torch.stack([v[name] for v in expected]) for name in each[0]})


@every_case
def test_the_output_can_be_changed_in_place(d: int, whitening: str) -> None:
    """As ReLU(inplace=True) does behind a norm layer: the gradients stay those of the function without it."""
    x = torch.randn(6, 2 * d, 5, dtype=torch.double)
    mean, cov = torch.zeros(2 * d, dtype=torch.double), torch.eye(d, dtype=torch.double).repeat(2, 1, 1)
    for normalize in (
        lambda v: closed_form.batch_norm(v, None, None, d=d, eps=1e-5, whitening=whitening)[0],
        lambda v: closed_form.normalize(v, mean, cov, None, None, d=d, eps=1e-5, whitening=whitening),
    ):
        gradients = []
        for inplace in (True, False):
            leaf = x.clone().requires_grad_()
            torch.nn.functional.relu(normalize(leaf), inplace=inplace).square().sum().backward()
            gradients.append(leaf.grad)
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("d", [1, 2, 4])
def test_expanded_tensors_are_read_as_they_are(d: int) -> None:
    """Statistics, Gamma and beta that stand for the same value many times give what their copies give, gradients included."""
    x = randn(9, 3 * d, 5).requires_grad_()
    eye = torch.eye(d, dtype=torch.float64)
    expanded = [randn(1).expand(3 * d), eye.expand(3, d, d), 2 * eye.expand(3, d, d), randn(1).expand(3 * d)]
    results = []
    for mean, cov, gamma, beta in (expanded, [value.clone() for value in expanded]):
        y = closed_form.normalize(x, mean, cov, gamma, beta, d=d, eps=0.0, whitening="naive")
        results.append((y, *torch.autograd.grad(y.pow(3).sum(), x)))
    torch.testing.assert_close(*results)
