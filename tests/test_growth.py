"""A hypernetwork that grows in the middle of its training learns on as one that had all tasks from the start."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hnetcl.bn import BatchNormLayer, auxiliary_loss
from hnetcl.hnets import BaseHyperNetwork, DirectHyperNetwork, HyperNetwork
from hnetcl.model import HyperModel

SHAPES = {"body.weight": (6, 4), "norm.weight": (6,), "head.weight": (3, 6)}
MEMBERS: dict[str, Callable[..., BaseHyperNetwork]] = {
    "full": partial(HyperNetwork, generator="full", hidden=(5,)),
    "structured": partial(HyperNetwork, generator="structured", chunk_size=9),
    "direct": DirectHyperNetwork,
}
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": partial(torch.optim.Adam, lr=0.01),
    "amsgrad": partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    "fused adamw": partial(torch.optim.AdamW, lr=0.01, fused=True),
    "momentum": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "centered rmsprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
    "adagrad": partial(torch.optim.Adagrad, lr=0.01, initial_accumulator_value=0.1),
}


def step(hnet: BaseHyperNetwork, optimizer: Optimizer, tasks: list[int]) -> None:
    optimizer.zero_grad()
    written: Tensor = hnet.flat(torch.tensor(tasks))
    (written - torch.linspace(-1, 1, written.shape[1])).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS.keys())
def test_growing_changes_nothing_for_old_tasks_nor_for_the_optimizer(
    make: Callable[..., BaseHyperNetwork], optimizer: Callable[..., Optimizer]
) -> None:
    """Steps on tasks 0 and 1, then on all three: the same as with three from the start, the third at the same place."""
    torch.manual_seed(0)
    whole = make(SHAPES, 3)
    grown = copy.deepcopy(whole)
    (name,) = grown.fresh_entries()
    setattr(grown, name, nn.Parameter(grown.get_parameter(name).detach()[:2].clone()))
    grown.num_tasks = 2
    optimizers = [optimizer(hnet.parameters()) for hnet in (whole, grown)]
    for _ in range(3):
        for hnet, own in zip((whole, grown), optimizers, strict=True):
            step(hnet, own, [0, 1])
    grown.add_task(optimizers[1])
    with torch.no_grad():
        grown.get_parameter(name)[2] = whole.get_parameter(name)[2]
    for tasks in ([0, 1], [2], [0, 1, 2]):
        for hnet, own in zip((whole, grown), optimizers, strict=True):
            step(hnet, own, tasks)
    expected = dict(whole.named_parameters())
    for key, value in grown.named_parameters():
        torch.testing.assert_close(value, expected[key])
    held = {id(p) for group in optimizers[1].param_groups for p in group["params"]}
    assert held == {id(p) for p in grown.parameters()}
    assert {id(p) for p in optimizers[1].state} <= held


def test_without_an_optimizer_none_is_needed() -> None:
    hnet = HyperNetwork(SHAPES, 1, "full")
    hnet.add_task()
    assert len(hnet.embedding) == hnet.num_tasks == 2


@pytest.mark.parametrize("stats", ["tracked", "learnable", "frozen"])
def test_a_model_opens_rows_too(stats: Any) -> None:
    """Old tasks compute as before, with weights and rows of their own; the new one has its own too, and learns."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), BatchNormLayer(6, stats=stats), nn.ReLU(), nn.Linear(6, 3))
    shapes = {name: value.shape for name, value in net.named_parameters() if "running" not in name}
    model, x = HyperModel(net, HyperNetwork(shapes, 2, "full", hidden=(5,))), torch.randn(20, 5)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)

    def train(task: int) -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = nn.functional.cross_entropy(model.train()(x + task, task), torch.arange(20) % 3)
        (loss + auxiliary_loss(model)).backward()
        optimizer.step()
        return loss.detach()

    for task in (0, 1):
        train(task)
    before = model.eval().all_tasks(x)
    model.add_task(optimizer)
    torch.testing.assert_close(model.eval().all_tasks(x)[:2], before, rtol=0, atol=0)
    layer = net[1]
    assert isinstance(layer, BatchNormLayer)
    assert layer.num_stats == (0 if stats == "frozen" else 3)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    first = train(2)
    for _ in range(30):
        last = train(2)
    assert last < first
