"""What methods add to the loss."""

import pytest
import torch

from hnetcl.choices import TARGETS
from hnetcl.errors import ArgumentError
from hnetcl.hnets import HyperNetwork
from hnetcl.methods import Finetune, Joint, Method, OutputRegularizer

SHAPES = {"weight": (4, 5), "bias": (4,)}


def start(method: Method, hnet: HyperNetwork, task: int) -> None:
    method.start_task(hnet, task, torch.optim.Adam(hnet.parameters()), torch.Generator().manual_seed(0))


def moved(tasks: int) -> tuple[HyperNetwork, OutputRegularizer, torch.Tensor]:
    """A hypernetwork that was changed after the method looked at it, and what it wrote before."""
    hnet = HyperNetwork(SHAPES, 5, "full", hidden=(6,)).double()
    method = OutputRegularizer(beta=0.3)
    start(method, hnet, tasks)
    before = torch.stack([torch.cat([v.flatten() for v in hnet(t).values()]) for t in range(5)]).detach()
    with torch.no_grad():
        for p in hnet.parameters():
            p.add_(torch.randn_like(p) / 10)
    return hnet, method, before


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_the_output_regularizer_is_the_papers_formula(tasks: int) -> None:
    """beta / (T - 1) * sum over old tasks of the squared distance, task by task."""
    hnet, method, before = moved(tasks)
    expected = torch.zeros((), dtype=torch.double)
    for t in range(tasks):
        now = torch.cat([v.flatten() for v in hnet(t).values()])
        expected = expected + (now - before[t]).square().sum()
    penalty = method.penalty(hnet)
    assert penalty is not None
    torch.testing.assert_close(penalty, 0.3 / tasks * expected)
    actual = torch.autograd.grad(penalty, list(hnet.parameters()))
    wanted = torch.autograd.grad(0.3 / tasks * expected, list(hnet.parameters()))
    torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("sample", [1, 2, 3])
def test_a_sample_of_old_tasks_is_unbiased(sample: int) -> None:
    """The mean over many draws is the penalty of all tasks; no task is drawn twice."""
    hnet, _, _ = moved(4)
    every, some = OutputRegularizer(0.3), OutputRegularizer(0.3, sample=sample)
    for method in (every, some):
        start(method, hnet, 4)
    with torch.no_grad():
        for p in hnet.parameters():
            p.add_(torch.randn_like(p) / 10)
        draws = torch.stack([penalty for _ in range(4000) if (penalty := some.penalty(hnet)) is not None])
        expected = every.penalty(hnet)
    assert expected is not None
    assert abs(float(draws.mean() - expected)) < 4 * float(draws.std()) / len(draws) ** 0.5
    assert len(draws.unique()) <= {1: 4, 2: 12, 3: 24}[sample]  # orders of summation may round differently
    if 4 % sample == 0:  # each task once before any comes again
        torch.testing.assert_close(draws.reshape(-1, 4 // sample).mean(1), expected.expand(1000 * sample))


@pytest.mark.parametrize("sample", [None, 2])
def test_online_targets_are_the_stored_ones(sample: int | None) -> None:
    hnet, _, _ = moved(4)
    methods = [OutputRegularizer(0.3, sample, targets, task_weights=[1, 0.5, 2, 0]) for targets in TARGETS]
    for method in methods:
        start(method, hnet, 4)
    with torch.no_grad():
        for p in hnet.parameters():
            p.add_(torch.randn_like(p) / 10)
    first, second = (method.penalty(hnet) for method in methods)
    assert first is not None
    assert second is not None
    torch.testing.assert_close(first, second)


def test_task_weights_scale_their_tasks() -> None:
    hnet, _, before = moved(2)
    method = OutputRegularizer(0.3, task_weights=[0.5, 3.0])
    start(method, hnet, 2)
    assert method.record is not None
    method.record = type(method.record)([before[:2]], [])
    penalty = method.penalty(hnet)
    assert penalty is not None
    now = hnet.flat(torch.arange(2))
    torch.testing.assert_close(penalty, 0.15 * ((now - before[:2]).square().sum(1) @ torch.tensor([0.5, 3.0]).double()))


def test_task_weights_must_be_as_many_as_old_tasks() -> None:
    hnet, _, _ = moved(2)
    with pytest.raises(ArgumentError, match=r"task_weights=\[1.0\]: there are 2 old tasks"):
        start(OutputRegularizer(0.3, task_weights=[1.0]), hnet, 2)


def test_the_penalty_is_zero_before_the_first_step_and_absent_for_the_first_task() -> None:
    hnet = HyperNetwork(SHAPES, 5, "full", hidden=(6,))
    method = OutputRegularizer(beta=0.3)
    start(method, hnet, 0)
    assert method.penalty(hnet) is None
    start(method, hnet, 3)
    penalty = method.penalty(hnet)
    assert penalty is not None
    assert penalty == 0


def test_targets_carry_no_graph() -> None:
    _, method, _ = moved(2)
    assert method.record is not None
    assert not any(value.requires_grad for value in method.record.by_task + method.record.common)


@pytest.mark.parametrize("beta", [-1, float("nan"), float("inf")])
def test_beta_has_bounds(beta: float) -> None:
    with pytest.raises(ArgumentError, match="beta="):
        OutputRegularizer(beta)


def test_baselines() -> None:
    hnet = HyperNetwork(SHAPES, 5, "full", hidden=(6,))
    assert Finetune().penalty(hnet) is None
    assert Joint().penalty(hnet) is None
    assert Finetune().state() == Joint().state() == {}
    assert [Finetune().batch_task(3, step) for step in range(3)] == [3, 3, 3]
    assert [Joint().batch_task(2, step) for step in range(5)] == [0, 1, 2, 0, 1]
