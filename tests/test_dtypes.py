"""What is written takes the dtype and the shape of its parameter: any precision, complex, without axes, without numbers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import hnetcl
from hnetcl.errors import ArgumentError
from hnetcl.hnets import BaseHyperNetwork, initial_parameters, make_hypernetwork
from hnetcl.modules import placed

MEMBERS: dict[str, partial[BaseHyperNetwork]] = {
    "full": partial(make_hypernetwork, hnet="full", hidden=(8,)),
    "chunked": partial(make_hypernetwork, hnet="chunked", hidden=(8,), chunk_size=20),
    "structured": partial(make_hypernetwork, hnet="structured", hidden=(8,), chunk_size=20),
    "structured, nothing left over": partial(make_hypernetwork, hnet="structured", hidden=(8,), groups=["*"], chunk_size=20),
    "low rank": partial(make_hypernetwork, hnet="low_rank", rank=1, chunk_size=20),
    "low rank, with a base": partial(make_hypernetwork, hnet="low_rank", rank=1, base=True, chunk_size=20),
    "direct": partial(make_hypernetwork, hnet="direct", per_task=("*",)),
    "direct, all shared": partial(make_hypernetwork, hnet="direct", per_task=()),
}
member = pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS.keys())
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 3e-2, torch.float16: 3e-3}


class Odd(nn.Module):
    """Two layers, a parameter without axes, one without numbers, and some off zero."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8, dtype=dtype), nn.Linear(8, 3, dtype=dtype)
        self.slope, self.none = nn.Parameter(torch.tensor(1.5, dtype=dtype)), nn.Parameter(torch.zeros(0, 3, dtype=dtype))
        self.shift = nn.Parameter(torch.rand(8, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second((self.first(x) * self.slope).tanh() + self.shift) + self.none.sum()
        return logits


class Complex(nn.Module):
    """Complex weights, of a layer and without axes, before real ones."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8, dtype=dtype), nn.Linear(8, 3, dtype=dtype.to_real())
        self.turn = nn.Parameter(torch.tensor(1.0 + 2.0j, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second((self.first(x.to(self.turn.dtype)) * self.turn).abs())
        return logits


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("init", ["own", "given", "fan_in"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@member
def test_written_in_the_parameters_dtype(make: partial[BaseHyperNetwork], dtype: torch.dtype, init: Any) -> None:
    """As the module computes with these values, gradients too; all tasks in one pass; in double precision afterwards."""
    net, x, tolerance = Odd(dtype), torch.randn(5, 6, dtype=dtype), TOLERANCE[dtype]
    expected, shapes = net(x).detach(), {name: p.shape for name, p in net.named_parameters()}
    model = hnetcl.wrap(net, 2, init=init, **make.keywords)
    if init == "given":
        assert torch.equal(model(x, 1), expected)
    with placed(net, model.hnet(1), model.places):
        for name in model.hnet.shapes:
            path, _, key = name.rpartition(".")
            value = net.get_submodule(path)._parameters[key]
            assert value is not None
            assert (value.dtype, value.shape) == (dtype, shapes[name])
    logits = model(x, 1)
    assert logits.dtype == dtype
    torch.testing.assert_close(model.eval().all_tasks(x)[1], logits, rtol=tolerance, atol=tolerance)
    written = {name: value.detach().to(dtype).requires_grad_() for name, value in model.hnet(1).items()}
    functional_call(net, written, (x,)).sum().backward()
    params = model.hnet(1)
    for value in params.values():
        value.retain_grad()
    model.run(params, x, 1).sum().backward()
    for name, value in params.items():
        assert value.grad is not None
        torch.testing.assert_close(value.grad.to(dtype), written[name].grad, rtol=tolerance, atol=tolerance)
    before = model(x, 1).double()
    after = model.double()(x.double(), 1)
    assert after.dtype == torch.float64
    torch.testing.assert_close(after, before, rtol=10 * tolerance, atol=10 * tolerance)
    model.all_tasks(x.double())


@pytest.mark.parametrize("init", ["own", "given", "fan_in"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@member
def test_complex_parameters_are_two_real_numbers_each(make: partial[BaseHyperNetwork], dtype: torch.dtype, init: Any) -> None:
    net, x = Complex(dtype), torch.randn(20, 6)
    expected = net(x).detach()
    model = hnetcl.wrap(net, 2, init=init, **make.keywords)
    assert model.hnet.shapes["first.weight"] == (8, 6, 2)
    assert model.hnet.shapes["turn"] == (2,)
    if init == "given":
        assert torch.equal(model.eval()(x, 1), expected)
    torch.testing.assert_close(model.eval().all_tasks(x)[1], model(x, 1), rtol=1e-5, atol=1e-5)
    optimizer = torch.optim.Adam(model.hnet.parameters(), 0.02)
    losses = []
    for _ in range(60):
        losses.append(F.cross_entropy(model.train()(x, 1), torch.arange(20) % 3))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert float(losses[-1].detach()) < float(losses[0].detach())
    saved = {name: value.clone() for name, value in model.saved_tensors().items()}
    other = hnetcl.wrap(Complex(dtype), 2, init=init, **make.keywords)
    other.load_tensors(saved)
    assert torch.equal(other.eval()(x, 1), model.eval()(x, 1))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised inside torch's compiler
@pytest.mark.parametrize("net", [Odd, partial(Complex, torch.complex64), partial(Odd, torch.bfloat16)])
@pytest.mark.parametrize("make", [MEMBERS[name] for name in ("chunked", "structured", "low rank, with a base", "direct")])
def test_one_graph_holds_it_all(make: partial[BaseHyperNetwork], net: Callable[[], nn.Module]) -> None:
    """Shares, centers and dtypes are no obstacle for torch's compiler."""
    torch._dynamo.reset()
    model = hnetcl.wrap(net(), 3, init="given", **make.keywords).eval()
    x, task, tasks = (
        torch.randn(4, 6).to(model.net.get_parameter("first.bias").dtype.to_real()),
        torch.tensor(2),
        torch.arange(2),
    )
    before = model.hnet.record(tasks, 1000)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return model(x, task), model.hnet.with_squared_distance(task, tasks, before)[1]

    compiled = torch.compile(both, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), both(x))
    sum(value.sum() for value in compiled(x)).backward()  # type: ignore[union-attr]


def test_the_fan_of_a_complex_layer() -> None:
    """Each real output sums two products for every complex input."""
    values = initial_parameters(nn.Linear(200, 100, dtype=torch.complex64), "fan_in")
    torch.testing.assert_close(values["weight"].var(), torch.tensor(2 / 400), rtol=0.05, atol=0)


@member
def test_growth_and_distances_of_odd_shapes(make: partial[BaseHyperNetwork]) -> None:
    model = hnetcl.wrap(Odd(), 2, **make.keywords)
    tasks, hnet = torch.arange(2), model.hnet
    before = hnet.record(tasks, 1000)
    model.add_task()
    assert hnet.flat(torch.arange(3)).shape == (3, hnet.num_generated)
    assert {name: tuple(value.shape) for name, value in hnet(tasks[:0]).items()}["none"] == (0, 0, 3)
    params, far = hnet.with_squared_distance(torch.tensor(2), tasks, before)
    assert params["slope"].shape == ()
    torch.testing.assert_close(far, torch.zeros(2))
    lone = make({"slope": ()}, 2, initial={"slope": torch.tensor(3.0)})
    assert torch.equal(lone(1)["slope"], torch.tensor(3.0))
    mixed = make({"none": (0, 4), "weight": (5, 4), "also none": (2, 0)}, 2)
    assert mixed(0)["also none"].shape == (2, 0)


@member
def test_nothing_to_write(make: partial[BaseHyperNetwork]) -> None:
    with pytest.raises(ArgumentError, match=r"shapes={'none': .*}: needs at least one value to generate"):
        make({"none": (0, 3)}, 2)
    with pytest.raises(ArgumentError, match=r"initial=\['weight'\]: must be real"):
        make({"weight": (4, 3)}, 2, initial={"weight": torch.zeros(4, 3, dtype=torch.complex64)})


def test_parameters_that_cant_be_written() -> None:
    """Whole numbers are never learned; a lazy layer has no size yet."""
    net = nn.Linear(3, 2)
    net.register_parameter("codes", nn.Parameter(torch.arange(3), requires_grad=False))
    assert list(hnetcl.wrap(net, 2, hidden=[4]).hnet.shapes) == ["weight", "bias"]
    net = nn.Linear(3, 2)
    net.register_parameter("codes", nn.Parameter(torch.arange(3), requires_grad=False))
    with pytest.raises(ArgumentError, match=r"generate=\['codes'\]: codes is of torch.int64, which can't be learned"):
        hnetcl.wrap(net, 2, generate=["codes"])
    with pytest.raises(ArgumentError, match=r"module=Sequential: 0.weight has no size yet"):
        hnetcl.wrap(nn.Sequential(nn.LazyLinear(3)), 2)
