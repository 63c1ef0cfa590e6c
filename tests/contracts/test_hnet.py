"""What every hypernetwork must do. A new generator is a row of `HNETS`, and is then tested like all others."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from hnetcl.hnets import BaseHyperNetwork, make_hypernetwork
from hnetcl.registry import find, names

HNETS: dict[str, dict[str, Any]] = {  # name -> what makes it small
    "chunked": {"hidden": [6], "embedding_dim": 4, "chunk_embedding_dim": 3, "chunk_size": 20},
    "direct": {"per_task": ["head.*"], "heads": "drawn"},
    "full": {"hidden": [6], "embedding_dim": 4},
    "linear": {"embedding_dim": 4},
    "low_rank": {"hidden": [6], "embedding_dim": 4, "rank": 2, "chunk_size": 20},
    "structured": {"hidden": [6], "embedding_dim": 4, "chunk_size": 20},
}
SHAPES = {"body.weight": (12, 10), "body.bias": (12,), "conv.weight": (6, 4, 3, 3), "head.weight": (5, 12), "head.bias": (5,)}
TASKS = 4
EachHyperNetwork = pytest.mark.parametrize("name", HNETS)


def test_every_hypernetwork_is_in_the_table() -> None:
    assert HNETS.keys() == {n for n in names("hnet") if find("hnet", n).__module__.startswith("hnetcl.")}


def made(name: str, **more: Any) -> BaseHyperNetwork:
    torch.manual_seed(0)
    return make_hypernetwork(SHAPES, TASKS, name, **{**HNETS[name], **more})


def moved(hnet: BaseHyperNetwork) -> BaseHyperNetwork:
    """After some training."""
    with torch.no_grad():
        for p in hnet.parameters():
            p.add_(torch.randn_like(p) / 10)
    return hnet


@EachHyperNetwork
def test_names_and_shapes_in_one_forward(name: str) -> None:
    hnet = moved(made(name))
    many = hnet(torch.tensor([0, 2, 3]))
    assert {key: tuple(value.shape) for key, value in hnet(1).items()} == SHAPES
    for place, task in enumerate((0, 2, 3)):
        for key, value in hnet(task).items():
            torch.testing.assert_close(many[key][place], value)
    assert hnet.num_generated == sum(torch.Size(shape).numel() for shape in SHAPES.values())


@EachHyperNetwork
def test_every_parameter_learns_and_no_task_another_ones(name: str) -> None:
    hnet = moved(made(name))
    torch.cat([value.flatten() for value in hnet(1).values()]).square().sum().backward()
    assert all(p.grad is not None for p in hnet.parameters() if p.requires_grad and p.numel())
    for p in hnet.task_parameters():
        assert p.grad is not None
        others = [t for t in range(TASKS) if t != 1]
        assert not p.grad[others].any()


@EachHyperNetwork
def test_distances_are_those_of_what_is_generated(name: str) -> None:
    """However they are taken; gradients too."""
    hnet, tasks = moved(made(name)).double(), torch.arange(TASKS - 1)
    record, before = hnet.record(tasks, TASKS - 1), hnet.flat(tasks).detach()
    moved(hnet)
    plain, fast = (hnet.flat(tasks) - before).square().sum(1), hnet.squared_distance(tasks, record)
    torch.testing.assert_close(fast, plain)
    learning = [p for p in hnet.parameters() if p.requires_grad and p.numel()]
    gradients = [torch.autograd.grad(value.sum(), learning, allow_unused=True) for value in (fast, plain)]
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None) or not (one if other is None else other).any()
        if one is not None and other is not None:
            torch.testing.assert_close(one, other)
    params, distances = hnet.with_squared_distance(torch.tensor(3), tasks, record)
    torch.testing.assert_close(distances, plain)
    torch.testing.assert_close(params, hnet(3))


@EachHyperNetwork
def test_a_task_is_added_and_nothing_else_moves(name: str) -> None:
    hnet = moved(made(name))
    optimizer = torch.optim.Adam(hnet.parameters())
    before = [hnet(task) for task in range(TASKS)]
    hnet.add_task(optimizer)
    assert hnet.num_tasks == TASKS + 1
    for task, params in enumerate(before):
        torch.testing.assert_close(hnet(task), params, rtol=0, atol=0)
    assert all(value.isfinite().all() for value in hnet(TASKS).values())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in hnet.parameters()}


@EachHyperNetwork
def test_state_and_copies(name: str) -> None:
    hnet = moved(made(name))
    other = made(name)
    other.load_state_dict(hnet.state_dict())
    for twin in (other, copy.deepcopy(hnet)):
        torch.testing.assert_close(twin(2), hnet(2), rtol=0, atol=0)


@EachHyperNetwork
def test_it_starts_as_wide_as_the_network(name: str) -> None:
    """Over tasks, what is generated has the variance of the network's draw; what starts at constants starts there exactly."""
    torch.manual_seed(1)
    initial: dict[str, Tensor] = {
        "body.weight": torch.randn(12, 10) / 3,
        "body.bias": torch.zeros(12),
        "conv.weight": torch.randn(6, 4, 3, 3) / 6,
        "head.weight": torch.randn(5, 12) / 4,
        "head.bias": torch.zeros(5),
    }
    hnet = make_hypernetwork(SHAPES, 16, name, initial=initial, **HNETS[name])
    found = {key: value.detach() for key, value in hnet(torch.arange(16)).items()}
    for key, value in initial.items():
        if key.endswith("bias"):
            assert not found[key].any()
        else:
            ratio = float(found[key].square().mean() / value.square().mean())
            assert 1 / 3 < ratio < 3, f"{key}: {ratio}"
    given = make_hypernetwork(SHAPES, 4, name, initial=initial, given=True, **HNETS[name])
    for task in range(4):
        torch.testing.assert_close(given(task), initial)
