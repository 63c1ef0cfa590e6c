"""Laws of penalties and projections, on real images, beside plain reference code."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hnetcl.build import Parts, build
from hnetcl.config import Config
from hnetcl.methods import Inputs, Run, active_only
from hnetcl.methods.agem import AGEM
from hnetcl.methods.quadratic import QuadraticPenalty

CPU = torch.device("cpu")
Compose = Callable[..., Config]


def started(tiny: list[str], compose: Compose, *words: str) -> tuple[Parts, Run]:
    """A small run without batch norm, before its first task."""
    small = [word for word in tiny if not word.startswith("hnet.")]
    parts = build(compose(*small, "hnet=direct", "bn=real", "net.norm=none", *words), CPU)
    optimizer = torch.optim.SGD(parts.model.parameters(), lr=0.1)
    return parts, Run(parts.model, 0, parts.sequence, optimizer, torch.Generator().manual_seed(0))


def batch(run: Run, size: int) -> tuple[Tensor, Tensor]:
    """Images and labels of the current task."""
    train = run.data.train
    chosen = torch.arange(size) % len(train)
    return run.data.preprocess(train.images[chosen]), train.labels[chosen] + run.sequence.first_output(run.task)


@pytest.mark.parametrize("method", ["ewc", "online_ewc", "mas"])
def test_penalties_do_not_depend_on_the_batch_size(
    method: str, tiny: list[str], compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on that of the training, nor on how many samples the importance is computed for at a time."""
    found = []
    for size in (1, 32, 256):
        torch.manual_seed(0)
        parts, run = started(tiny, compose, f"method={method}", "method.samples=300", f"trainer.batch_size={max(2, size)}")
        parameters = parts.model.common_parameters()
        values = sum(p.numel() for p in parameters.values())
        monkeypatch.setattr("hnetcl.importance.gradients.HELD_AT_ONCE", size * values)
        parts.method.end_task(run)
        with torch.no_grad():
            for p in parameters.values():
                p.add_(0.1)
        run.task = 1
        x, y = batch(run, size)
        found.append(parts.method.after_backward(run, parts.method.inputs(run, lambda x=x, y=y: (x, y)))["penalty"])
    assert found[0] > 0
    torch.testing.assert_close(torch.stack(found), found[0].expand(3), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_agem_projects_what_would_raise_the_loss_on_stored_samples(scenario: str, tiny: list[str], compose: Compose) -> None:
    """g - (g.r / r.r) r where g.r < 0, of plain flat vectors, and g itself elsewhere."""
    torch.manual_seed(0)
    parts, run = started(tiny, compose, "method=agem", "method.size=30", "method.reference=16", f"scenario={scenario}")
    model, method = parts.model, parts.method
    assert isinstance(method, AGEM)
    method.start_task(run)
    x, y = batch(run, 20)
    inputs = run.batch(x, y, 0)
    method.after_step(run, inputs, method.loss(model, inputs))
    run.task = 1
    method.start_task(run)
    inputs = run.batch(*batch(run, 8), 1)

    state, stored = run.generator.get_state(), Inputs(inputs.x, inputs.y, 1)
    method.replay(stored, run, "memory", 16)
    old = stored.tensors
    loss = F.cross_entropy(active_only(model(old["memory.x"], 0), old.get("memory.active")), old["memory.y"])
    parameters = list(model.common_parameters().values())
    r = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    across = torch.randn_like(r) * r.norm() / len(r) ** 0.5
    for g, expected in (
        (across - 2 * r, (across - 2 * r) - (across - 2 * r).dot(r) / r.dot(r) * r),
        (across + 2 * r, across + 2 * r),
    ):
        run.generator.set_state(state)
        for p, part in zip(parameters, g.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p).clone()
        method.after_backward(run, inputs)
        found = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        torch.testing.assert_close(found, expected)
        assert found.dot(r) > -1e-5 * r.norm() * g.norm()


def test_replay_may_count_each_task_alike(tiny: list[str], compose: Compose) -> None:
    """With two old tasks the batch has a third of the loss."""
    found = []
    for weighting in ("fixed", "tasks"):
        torch.manual_seed(0)
        words = ["method=replay", "method.size=30", "scenario=class", f"method.weighting={weighting}"]
        parts, run = started(tiny, compose, *words)
        model, method = parts.model, parts.method
        for task in range(3):
            run.task = task
            method.start_task(run)
            x, y = batch(run, 20)
            inputs = method.inputs(run, lambda x=x, y=y: (x, y))
            losses = method.loss(model, inputs)
            method.after_step(run, inputs, losses)
        found.append(losses)
    fixed, shared = found
    torch.testing.assert_close(shared.parts["loss"], fixed.parts["loss"] / 3)
    torch.testing.assert_close(shared.parts["replay"], fixed.parts["replay"] * 2 / 3)
    torch.testing.assert_close(shared.total, shared.parts["loss"] + shared.parts["replay"])


@pytest.mark.parametrize("method", ["l2", "ewc", "online_ewc", "mas", "si"])
def test_the_gradient_of_a_penalty_is_that_of_autograd(method: str, tiny: list[str], compose: Compose) -> None:
    """s sum(Omega (theta - theta*)^2), on top of the gradients that are there; parameters without one get it alone."""
    torch.manual_seed(0)
    parts, run = started(tiny, compose, f"method={method}")
    model, held = parts.model, parts.method
    assert isinstance(held, QuadraticPenalty)
    parameters = model.common_parameters()
    held.importance = {name: torch.rand_like(p) for name, p in parameters.items()}
    held.anchor = {name: torch.randn_like(p) for name, p in parameters.items()}
    squares = [(held.importance[n] * (p - held.anchor[n]).square()).sum() for n, p in parameters.items()]
    penalty = held.strength * torch.stack(squares).sum()
    wanted = torch.autograd.grad(penalty, list(parameters.values()))
    before = [torch.zeros_like(p) if i == 0 else torch.randn_like(p) for i, p in enumerate(parameters.values())]
    for i, (p, old) in enumerate(zip(parameters.values(), before, strict=True)):
        p.grad = None if i == 0 else old.clone()
    found = held.after_backward(run, run.batch(*batch(run, 8), 0))
    torch.testing.assert_close(found["penalty"], penalty.detach())
    for p, old, new in zip(parameters.values(), before, wanted, strict=True):
        torch.testing.assert_close(p.grad, old + new)
