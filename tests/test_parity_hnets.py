"""Hypernetworks beside hypnettorch's: from the same weights come the same outputs, penalty, gradients and training."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchmarks.peers import copy_hypnettorch, read_as_ours
from torch import Tensor

from hnetcl.hnets import HyperNetwork
from hnetcl.methods.output_regularizer import OutputRegularizer
from hnetcl.model import HyperModel
from hnetcl.nets import MLP

TASKS, E, HIDDEN, BETA = 4, 5, (9, 7), 0.3


def peer(module: str) -> Any:
    """A module of hypnettorch 0.0.4; the test is skipped where it is not installed."""
    return pytest.importorskip(f"hypnettorch.{module}", reason="hypnettorch is not installed (it is in the extra `peers`)")


@dataclass
class Pair:
    """Ours and theirs with the same weights, in training of the last task, and a batch."""

    ours: HyperNetwork
    model: HyperModel
    theirs: Any
    main: Any
    x: Tensor
    y: Tensor

    def their_outcome(self, targets: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Logits and penalty."""
        logits = self.main.forward(self.x, weights=self.theirs.forward(cond_id=TASKS - 1))
        reg = peer("utils.hnet_regularizer").calc_fix_target_reg(self.theirs, TASKS - 1, targets=targets, **options)
        return logits, BETA * reg

    def move(self) -> None:
        """Both to the same place, away from the targets."""
        with torch.no_grad():
            for p in self.theirs.parameters():
                p.add_(0.1 * torch.randn_like(p))
        copy_hypnettorch(self.ours, self.theirs)

    def their_values(self, read: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Of their parameters, by our names."""
        shared, own = self.theirs.unconditional_params, self.theirs.conditional_params
        return read_as_ours(self.ours, [read(p) for p in shared], [read(p) for p in own])


def full(shapes: Any, initial: dict[str, Tensor]) -> tuple[HyperNetwork, Any]:
    ours = HyperNetwork({n: v.shape for n, v in initial.items()}, TASKS, "full", initial, hidden=HIDDEN, embedding_dim=E)
    theirs = peer("hnets").HMLP(shapes, layers=HIDDEN, cond_in_size=E, num_cond_embs=TASKS, verbose=False)
    return ours, theirs


def chunked(shapes: Any, initial: dict[str, Tensor], size: int = 20) -> tuple[HyperNetwork, Any]:
    sizes: dict[str, Any] = {"hidden": HIDDEN, "embedding_dim": E, "chunk_embedding_dim": 3, "chunk_size": size}
    ours = HyperNetwork({n: v.shape for n, v in initial.items()}, TASKS, "chunked", initial, **sizes)
    options = {"layers": HIDDEN, "cond_in_size": E, "num_cond_embs": TASKS, "chunk_emb_size": 3, "verbose": False}
    return ours, peer("hnets").ChunkedHMLP(shapes, size, cond_chunk_embs=False, **options)


def pair(make: Any, dtype: torch.dtype) -> Pair:
    torch.manual_seed(0)
    main = peer("mnets").MLP(n_in=12, n_out=3, hidden_layers=[8, 6], no_weights=True, verbose=False)
    net = MLP((1, 3, 4), 3, hidden=(8, 6))
    initial = {name: torch.randn(p.shape) for name, p in net.named_parameters()}
    ours, theirs = make(main.param_shapes, initial)
    theirs.to(dtype)
    ours.to(dtype)
    copy_hypnettorch(ours, theirs)
    x, y = torch.randn(16, 12, dtype=dtype), torch.randint(3, (16,))
    return Pair(ours, HyperModel(net.to(dtype), ours).train(), theirs, main, x, y)


members = pytest.mark.parametrize("make", [full, chunked, partial(chunked, size=179)], ids=["full", "chunked", "one chunk"])
dtypes = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
by = pytest.mark.parametrize("by_factors", [True, False], ids=["by factors", "by numbers"])


def gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """Relative to the largest number of each tensor."""
    for name, value in theirs.items():
        assert float((ours[name] - value).abs().max()) <= tolerance * float(value.abs().max()), name


@members
@dtypes
def test_what_is_written(make: Any, dtype: torch.dtype, tolerance: float) -> None:
    """The parameters of every task, and the main network's logits."""
    both = pair(make, dtype)
    for task in range(TASKS):
        theirs = both.theirs.forward(cond_id=task)
        ours = list(both.ours(task).values())
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.reshape(b.shape), b, rtol=tolerance, atol=tolerance)
        logits = both.model(both.x.reshape(16, 1, 3, 4), task)
        torch.testing.assert_close(logits, both.main.forward(both.x, weights=theirs), rtol=tolerance, atol=tolerance)


@members
@by
@dtypes
def test_penalty_and_gradients_over_a_training(make: Any, by_factors: bool, dtype: torch.dtype, tolerance: float) -> None:
    """At every step of a task: logits, penalty over all old tasks, all gradients; and the weights after the last."""
    both = pair(make, dtype)
    optimizers = [torch.optim.Adam(h.parameters(), lr=0.01, eps=1e-3) for h in (both.ours, both.theirs)]
    method = OutputRegularizer(beta=BETA)
    method.hold(both.ours, TASKS - 1, optimizers[0], torch.Generator())
    old = torch.arange(TASKS - 1)
    if by_factors:
        method.record = both.ours.record(old, at_once=10**6)
        assert bool(method.record.common) == (make is chunked)  # of a single chunk there are none
    targets = peer("utils.hnet_regularizer").get_current_targets(TASKS - 1, both.theirs)
    both.move()
    for step in range(6):
        logits, penalty = both.model(both.x.reshape(16, 1, 3, 4), TASKS - 1), method.penalty(both.ours)
        expected, reg = both.their_outcome(targets)
        assert penalty is not None
        for optimizer, outcome in zip(optimizers, ((logits, penalty), (expected, reg)), strict=True):
            optimizer.zero_grad()
            (F.cross_entropy(outcome[0], both.y) + outcome[1]).backward()
        scale = tolerance * (1 + 9 * step)  # rounding goes through Adam's quotient into the weights
        torch.testing.assert_close(logits, expected, rtol=scale, atol=scale)
        torch.testing.assert_close(penalty, reg, rtol=scale, atol=scale)
        ours = {name: gradient(p) for name, p in both.ours.named_parameters() if p.numel()}
        assert_equal(ours, both.their_values(gradient), scale)
        for optimizer in optimizers:
            optimizer.step()
    trained = {name: p.detach() for name, p in both.ours.named_parameters()}
    assert_equal(trained, both.their_values(torch.Tensor.detach), 100 * tolerance)


@dtypes
def test_weights_of_tasks_scale_the_terms(dtype: torch.dtype, tolerance: float) -> None:
    """Their `reg_scaling` is our `task_weights`."""
    both = pair(chunked, dtype)
    weights = [0.5, 2.0, 0.0]
    method = OutputRegularizer(beta=BETA, task_weights=weights)
    method.hold(both.ours, TASKS - 1, torch.optim.Adam(both.ours.parameters()), torch.Generator())
    targets = peer("utils.hnet_regularizer").get_current_targets(TASKS - 1, both.theirs)
    both.move()
    _, reg = both.their_outcome(targets, reg_scaling=weights)
    penalty = method.penalty(both.ours)
    assert penalty is not None
    torch.testing.assert_close(penalty, reg, rtol=tolerance, atol=tolerance)
