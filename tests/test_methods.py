"""What methods add to the loss."""

import pytest
import torch

from hnetcl.errors import ArgumentError
from hnetcl.hnets import FullHyperNetwork
from hnetcl.methods import Finetune, Joint, OutputRegularizer

SHAPES = {"weight": (4, 5), "bias": (4,)}


def moved(tasks: int) -> tuple[FullHyperNetwork, OutputRegularizer, torch.Tensor]:
    """A hypernetwork that was changed after the method looked at it, and what it wrote before."""
    hnet = FullHyperNetwork(SHAPES, 5, hidden=(6,)).double()
    method = OutputRegularizer(beta=0.3)
    method.start_task(hnet, tasks)
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


def test_the_penalty_is_zero_before_the_first_step_and_absent_for_the_first_task() -> None:
    hnet = FullHyperNetwork(SHAPES, 5, hidden=(6,))
    method = OutputRegularizer(beta=0.3)
    method.start_task(hnet, 0)
    assert method.penalty(hnet) is None
    method.start_task(hnet, 3)
    penalty = method.penalty(hnet)
    assert penalty is not None
    assert penalty == 0


def test_targets_carry_no_graph() -> None:
    _, method, _ = moved(2)
    assert method.targets is not None
    assert not method.targets.requires_grad


@pytest.mark.parametrize("beta", [-1, float("nan"), float("inf")])
def test_beta_has_bounds(beta: float) -> None:
    with pytest.raises(ArgumentError, match="beta="):
        OutputRegularizer(beta)


def test_baselines() -> None:
    hnet = FullHyperNetwork(SHAPES, 5, hidden=(6,))
    assert Finetune().penalty(hnet) is None
    assert Joint().penalty(hnet) is None
    assert [Finetune().batch_task(3, step) for step in range(3)] == [3, 3, 3]
    assert [Joint().batch_task(2, step) for step in range(5)] == [0, 1, 2, 0, 1]
