"""Squared distances by factors are those of what is written."""

import copy

import pytest
import torch

from hnetcl.hnets import BaseHyperNetwork, HyperNetwork
from hnetcl.hnets.distance import Chunks, SquaredDistance
from hnetcl.hnets.generators.chunk_mlp import ChunkMLP

SHAPES = {"a": (40, 30), "a.bias": (40,), "norm": (40,), "b": (50, 40), "b.bias": (50,), "c": (3, 50), "c.bias": (3,)}
TASKS = torch.tensor([0, 1, 4, 3, 5])


def initial() -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape) / 10 if len(shape) > 1 else torch.ones(shape) for name, shape in SHAPES.items()}


def hypernetwork(chunk_size: int, dtype: torch.dtype, kind: str = "chunked") -> HyperNetwork:
    torch.manual_seed(chunk_size)
    hnet = HyperNetwork(SHAPES, 6, kind, hidden=(9, 5), chunk_size=chunk_size, initial=initial()).to(dtype)
    move(hnet, 1.0)
    return hnet


def move(hnet: HyperNetwork, by: float) -> None:
    with torch.no_grad():
        for p in hnet.parameters():
            p.add_(by * torch.randn_like(p))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
@pytest.mark.parametrize("by", [1.0, 0.01])
@pytest.mark.parametrize("chunk_size", [17, 100, 400])
@pytest.mark.parametrize("kind", ["chunked", "structured"])
def test_factors_give_what_the_values_give(kind: str, chunk_size: int, by: float, dtype: torch.dtype, tolerance: float) -> None:
    """Values and gradients, with a weight for every task; chunks that hold one parameter, several, or the end."""
    hnet = hypernetwork(chunk_size, dtype, kind)
    old = copy.deepcopy(hnet)
    by_factors, by_values = old.record(TASKS, at_once=100), BaseHyperNetwork.record(old, TASKS, 100)
    assert by_factors.common
    assert not by_values.common
    move(hnet, by)
    weights = torch.rand(len(TASKS), dtype=dtype)
    found, gradients = [], []
    for record in (by_factors, by_values):
        far = hnet.squared_distance(TASKS, record)
        found.append(far.detach())
        gradients.append(torch.autograd.grad(far @ weights, list(hnet.parameters())))
    torch.testing.assert_close(*found, rtol=tolerance, atol=0)
    for one, two in zip(*gradients, strict=True):
        assert float((one - two).abs().max()) <= tolerance * float(two.abs().max())


def test_some_tasks_of_a_record() -> None:
    hnet = hypernetwork(50, torch.float64)
    record = hnet.record(TASKS, at_once=100)
    move(hnet, 0.1)
    every = hnet.squared_distance(TASKS, record)
    places = torch.tensor([3, 1])
    torch.testing.assert_close(hnet.squared_distance(TASKS[places], record.of(places)), every[places])


def test_values_are_compared_where_that_is_less_work() -> None:
    hnet = HyperNetwork(SHAPES, 6, "chunked", hidden=(64,), chunk_size=400, initial=initial())
    assert not hnet.record(TASKS[:1], at_once=1).common
    assert hnet.record(TASKS, at_once=100).common


def test_what_does_not_move_is_at_no_distance() -> None:
    hnet = hypernetwork(50, torch.float32)
    assert torch.equal(hnet.squared_distance(TASKS, hnet.record(TASKS, 100)), torch.zeros(5))


def test_gradients_by_finite_differences() -> None:
    shapes = ((2, 4, 3), (5, 3), (2, 4, 3), (5, 3))
    a, w, a_old, w_old = (torch.randn(shape, dtype=torch.float64) for shape in shapes)

    def distance(a: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = SquaredDistance.apply(a, w, a_old, w_old, w_old.T @ w_old)[0]
        return found

    torch.testing.assert_close(distance(a, w), (a @ w.T - a_old @ w_old.T).square().sum((1, 2)))
    assert torch.autograd.gradcheck(distance, (a.requires_grad_(), w.requires_grad_()))


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 7, 100])
def test_chunks_cover_everything_once(chunk_size: int) -> None:
    sizes, constant = [4, 1, 12, 3, 5], [False, True, False, True, False]
    found = Chunks(ChunkMLP(sizes, 2, (), chunk_size), constant)
    chunks = -(-sum(sizes) // chunk_size)
    scales, mixed, segments = found.scales.tolist(), found.mixed.tolist(), found.segments.tolist()
    assert mixed == [chunk for chunk in range(chunks) if scales[chunk] < 0]
    of_number = [k for k, size in enumerate(sizes) for _ in range(size)] + [-1] * (chunks * chunk_size - sum(sizes))
    for chunk, parameter in enumerate(scales):
        if chunk in mixed:
            continue
        assert of_number[chunk * chunk_size : (chunk + 1) * chunk_size] == [parameter] * chunk_size
        assert not constant[parameter]
    in_mixed = [of_number[c * chunk_size + j] for c in mixed for j in range(chunk_size)]
    runs = [parameter for parameter, n in zip(segments, found.lengths.tolist(), strict=True) for _ in range(n)]
    assert runs == in_mixed
    assert found.constants.tolist() == [i for i, k in enumerate(in_mixed) if k >= 0 and constant[k]]
