"""A look at the next step is that step, and changes nothing."""

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)
from torch.optim.lr_scheduler import LambdaLR

from hnetcl.errors import ArgumentError
from hnetcl.hnets import HyperNetwork
from hnetcl.lookahead import Gradients, Lookahead, evaluate
from hnetcl.registry import find, names

TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-12}


class Careless(Optimizer):
    """As other people write them: spoils gradients, counts in Python numbers, has an option as attribute."""

    def __init__(self, params: Any, lr: float = 0.1, power: float = 2.0) -> None:
        super().__init__(params, {"lr": lr, "steps": 0})
        self.power = power

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["steps"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state["count"] = state.get("count", 0) + 1
                    state.setdefault("history", []).append(p.grad.mul_(self.power).clone())
                    p.sub_(sum(state["history"]), alpha=group["lr"] / (state["count"] + group["steps"]))


MAKERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": partial(SGD, lr=0.1),
    "sgd decay": partial(SGD, lr=0.1, weight_decay=0.1),
    "sgd momentum": partial(SGD, lr=0.1, momentum=0.9),
    "sgd dampening": partial(SGD, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.1),
    "sgd nesterov": partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "sgd maximize": partial(SGD, lr=0.01, momentum=0.9, maximize=True),
    "sgd foreach": partial(SGD, lr=0.1, momentum=0.9, foreach=True, weight_decay=0.1),
    "sgd fused": partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, fused=True),
    "adam": partial(Adam, lr=0.1),
    "adam decay": partial(Adam, lr=0.1, weight_decay=0.1),
    "adam decoupled": partial(Adam, lr=0.1, weight_decay=0.1, decoupled_weight_decay=True),
    "adam amsgrad": partial(Adam, lr=0.1, amsgrad=True, maximize=True),
    "adam foreach": partial(Adam, lr=0.1, foreach=True, amsgrad=True, weight_decay=0.1),
    "adam fused": partial(Adam, lr=0.1, fused=True, amsgrad=True, weight_decay=0.1),
    "adam tensor lr": lambda params: Adam(params, lr=torch.tensor(0.1)),
    "adamw": partial(AdamW, lr=0.1, weight_decay=0.1),
    "adamw fused": partial(AdamW, lr=0.1, weight_decay=0.1, fused=True),
    "rmsprop": partial(RMSprop, lr=0.1, weight_decay=0.1),
    "rmsprop centered": partial(RMSprop, lr=0.1, centered=True),
    "rmsprop momentum": partial(RMSprop, lr=0.1, momentum=0.9, centered=True, weight_decay=0.1, foreach=True),
    "adagrad": partial(Adagrad, lr=0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.1),
    "adagrad fused": partial(Adagrad, lr=0.1, lr_decay=0.1, fused=True),
    "nadam": partial(NAdam, lr=0.1, weight_decay=0.1),
    "nadam foreach": partial(NAdam, lr=0.1, foreach=True),
    "radam": partial(RAdam, lr=0.1),
    "adadelta": partial(Adadelta, lr=0.1, weight_decay=0.1),
    "adamax": partial(Adamax, lr=0.1, weight_decay=0.1),
    "asgd": partial(ASGD, lr=0.1, t0=2.0),
    "asgd tensor lr": lambda params: ASGD(params, lr=torch.tensor(0.1), t0=2.0, foreach=False),
    "rprop": partial(Rprop, lr=0.1),
    "another library's": Careless,
}
every_optimizer = pytest.mark.parametrize("name", MAKERS)


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Some shapes, one of them of no dimension, one transposed in memory."""
    torch.manual_seed(0)
    values = [torch.randn(7, 3), torch.randn(5), torch.randn(()), torch.randn(4, 6).T]
    return [nn.Parameter(value.to(dtype)) for value in values]


def draw(params: list[nn.Parameter]) -> Gradients:
    return {p: torch.randn_like(p) for p in params}


def step(optimizer: Optimizer, gradients: Gradients) -> None:
    """A real step; the gradients themselves are left as they are."""
    optimizer.zero_grad()
    for p, gradient in gradients.items():
        p.grad = gradient.clone()
    optimizer.step()


def assert_foreseen(values: dict[nn.Parameter, Tensor], tolerance: float) -> None:
    for p, value in values.items():
        torch.testing.assert_close(value, p.detach(), rtol=0, atol=tolerance)


@every_optimizer
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_look_is_the_next_step(name: str, dtype: torch.dtype) -> None:
    """From the first step on, whose state does not exist yet, and also when the look comes late or twice."""
    params = parameters(dtype)
    optimizer = MAKERS[name](params)
    lookahead, late = Lookahead(optimizer), Lookahead(optimizer)
    for count in range(20):
        gradients = draw(params)
        lookahead.next_values(draw(params))
        values = lookahead.next_values(gradients)
        others = late.next_values(gradients) if count > 10 else {}
        before = [p.detach().clone() for p in params]
        step(optimizer, gradients)
        assert values.keys() == set(params)
        assert not all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
        assert_foreseen(values, TOLERANCES[dtype])
        assert_foreseen(others, TOLERANCES[dtype])


@every_optimizer
def test_looking_changes_nothing(name: str) -> None:
    """Not the parameters, gradients, options, schedule or state, nor which entries the state has."""
    params = parameters()
    optimizer = MAKERS[name](params)
    schedule = LambdaLR(optimizer, lambda count: 0.5**count)
    lookahead = Lookahead(optimizer)
    for _ in range(3):
        gradients = draw(params)
        kept = [gradient.clone() for gradient in gradients.values()]
        for p, gradient in gradients.items():
            p.grad = gradient
        before = deepcopy([params, optimizer.state_dict(), schedule.state_dict()])
        held = len(optimizer.state)
        lookahead.next_values(gradients)
        lookahead.ahead(gradients)
        now = [params, optimizer.state_dict(), schedule.state_dict()]
        torch.testing.assert_close(now, before, rtol=0, atol=0)
        torch.testing.assert_close(list(gradients.values()), kept, rtol=0, atol=0)
        assert all(p.grad is gradient for p, gradient in gradients.items())
        assert len(optimizer.state) == held
        step(optimizer, gradients)
        schedule.step()


@pytest.mark.parametrize("name", ["sgd fused", "adam fused", "adam tensor lr", "rmsprop", "adagrad"])
def test_groups_schedules_and_missing_gradients(name: str) -> None:
    """Every group has options of its own that change between steps; a parameter may come late, leave out a step, or join."""
    params = parameters()
    groups: list[dict[str, Any]] = [
        {"params": params[:1], "weight_decay": 0.3},
        {"params": params[1:3], "weight_decay": 0.0, "lr": 0.5},
    ]
    optimizer = MAKERS[name](groups)
    schedule = LambdaLR(optimizer, lambda count: 1 / (1 + count))
    lookahead = Lookahead(optimizer)
    present = [params[:1], params[:3], params[1:2], [], params[:2], params[:3], params, params]
    for count, now in enumerate(present):
        if count == 6:
            optimizer.add_param_group({"params": params[3:], "lr": 0.2})
            schedule = LambdaLR(optimizer, lambda count: 1 / (1 + count))
        gradients = draw(now)
        values = lookahead.next_values(gradients)
        before = [p.detach().clone() for p in params]
        step(optimizer, gradients)
        schedule.step()
        assert values.keys() == set(now)
        assert_foreseen(values, 1e-6)
        assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True) if p not in values)


def test_state_that_was_loaded_is_seen() -> None:
    params = parameters()
    optimizer = Adam(params, 0.1)
    lookahead = Lookahead(optimizer)
    for _ in range(3):
        step(optimizer, draw(params))
    saved = deepcopy(optimizer.state_dict())
    for _ in range(3):
        lookahead.next_values(draw(params))
        step(optimizer, draw(params))
    optimizer.load_state_dict(saved)
    gradients = draw(params)
    values = lookahead.next_values(gradients)
    step(optimizer, gradients)
    assert_foreseen(values, 1e-6)


def test_the_change_is_a_constant() -> None:
    """d (theta + Delta theta) / d theta = 1, though Delta theta depends on theta through weight decay and the loss."""
    params = parameters(torch.float64)
    optimizer = SGD(params, 0.1, weight_decay=0.5)
    losses = {p: p.square().sum() for p in params}
    gradients = {p: torch.autograd.grad(losses[p], p, create_graph=True)[0] for p in params}
    values = Lookahead(optimizer).ahead(gradients)
    for p, value in values.items():
        torch.testing.assert_close(value, (p - 0.1 * (2 * p + 0.5 * p)).detach(), check_layout=False)
        weight = torch.randn_like(p)
        torch.testing.assert_close(torch.autograd.grad((value * weight).sum(), p)[0], weight)
    assert Lookahead(optimizer).ahead({}) == {}


def test_the_penalty_at_the_next_values() -> None:
    """Its value is that after the step; its gradient too, taken as the gradient before."""
    torch.manual_seed(0)
    hnet = HyperNetwork({"weight": (4, 5), "bias": (4,)}, 3, "full", hidden=(6,)).double()
    tasks, targets = torch.arange(2), hnet.flat(torch.arange(2)).detach()

    def penalty(module: HyperNetwork) -> Tensor:
        return (module.flat(tasks) - targets).square().sum()

    optimizer = Adam(hnet.parameters(), 0.1)
    (hnet.flat(torch.tensor([2])) - 1).square().sum().backward()
    gradients = {p: p.grad for p in hnet.parameters() if p.grad is not None}
    ahead = evaluate(hnet, Lookahead(optimizer).ahead(gradients), penalty)
    actual = torch.autograd.grad(ahead, list(hnet.parameters()))
    assert penalty(hnet) == 0
    optimizer.step()
    after = penalty(hnet)
    assert after > 0
    torch.testing.assert_close(ahead, after)
    torch.testing.assert_close(actual, torch.autograd.grad(after, list(hnet.parameters())))


def test_hypnettorch_agrees() -> None:
    """The authors' own library: its change for plain gradient descent, and its regularizer at that change."""
    pytest.importorskip("hypnettorch", reason="hypnettorch is not installed (it is in the extra `peers`)")
    from hypnettorch.hnets import HMLP
    from hypnettorch.utils.hnet_regularizer import calc_fix_target_reg, get_current_targets
    from hypnettorch.utils.optim_step import calc_delta_theta

    torch.manual_seed(0)
    hnet = HMLP([[4, 5], [4]], cond_in_size=3, layers=(6,), num_cond_embs=3, verbose=False).double()
    targets = get_current_targets(2, hnet)
    shared = list(hnet.unconditional_params)
    with torch.no_grad():
        for p in shared:
            p.add_(torch.randn_like(p) / 10)
    optimizer = SGD(shared, 0.1)
    sum(w.square().sum() for w in hnet.forward(cond_id=2)).backward()
    changes = calc_delta_theta(optimizer, False)
    lookahead = Lookahead(optimizer)
    values = lookahead.ahead({p: p.grad for p in shared if p.grad is not None})
    for p, change in zip(shared, changes, strict=True):
        torch.testing.assert_close(values[p], p + change)
    expected = calc_fix_target_reg(hnet, 2, targets=targets, dTheta=changes)
    actual = evaluate(hnet, values, lambda module: calc_fix_target_reg(module, 2, targets=targets))
    torch.testing.assert_close(actual, expected)
    assert actual != calc_fix_target_reg(hnet, 2, targets=targets)
    torch.testing.assert_close(torch.autograd.grad(actual, shared), torch.autograd.grad(expected, shared))


def test_what_is_refused() -> None:
    params = parameters()
    with pytest.raises(ArgumentError, match=r"^optimizer=LBFGS: must be able to step without a closure$"):
        Lookahead(LBFGS(params))
    lookahead = Lookahead(SGD(params[:1], 0.1))
    with pytest.raises(ArgumentError, match=r"^gradients=torch.sparse_coo: must be dense$"):
        lookahead.next_values({params[0]: torch.randn(7, 3).to_sparse()})
    with pytest.raises(ArgumentError, match="must be dense"):
        Lookahead(SparseAdam(params[:1])).next_values({params[0]: torch.randn(7, 3).to_sparse()})
    with pytest.raises(ValueError, match=r"a gradient of shape \(3,\) for a parameter of shape \(7, 3\)"):
        lookahead.next_values({params[0]: torch.randn(3)})
    with pytest.raises(ValueError, match="gradients of 3 parameters that the optimizer doesn't have"):
        lookahead.next_values(draw(params))
    step(lookahead.optimizer, {params[0]: torch.ones(7, 3)})
    values = lookahead.next_values({params[0]: torch.ones(7, 3)})  # a refusal leaves nothing behind
    torch.testing.assert_close(values[params[0]], params[0].detach() - 0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", names("optimizer"))
def test_a_look_never_waits_for_the_gpu(name: str) -> None:
    params = [nn.Parameter(p.detach().cuda()) for p in parameters()]
    optimizer = find("optimizer", name)(lr=math.pi / 100).kind(params, lr=math.pi / 100, weight_decay=0.1)
    lookahead = Lookahead(optimizer)
    for count in range(4):
        gradients = draw(params)
        torch.cuda.set_sync_debug_mode("error" if count else "default")  # the first step may initialise libraries
        try:
            lookahead.ahead(gradients)
            values = lookahead.next_values(gradients)
            step(optimizer, gradients)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert_foreseen(values, 1e-6)
