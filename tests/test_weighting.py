"""How much old tasks weigh in replay and in learning without forgetting: the rules of van de Ven et al. 2022."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnetcl import wrap
from hnetcl.errors import ArgumentError
from hnetcl.methods import Run
from hnetcl.methods.lwf import LwF
from hnetcl.methods.replay import Replay
from hnetcl.tasks import TaskSequence, load_images, split_sequence
from hnetcl.tasks.memory import Memory


def begun(method: LwF | Replay, head: Any, root: Path, task: int = 2) -> Run:
    """A run of a network that is the same for all tasks, in its third task."""
    sequence = replace(split_sequence(lambda _: load_images("tiny", root), num_tasks=3, val_size=20), head=head)
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, sequence.num_outputs))
    model = wrap(net, 3, hnet="direct", per_task=[])
    run = Run(model, task, sequence, torch.optim.Adam(model.hnet.parameters()), torch.Generator().manual_seed(0))
    method.check(model, sequence)
    method.start_task(run)
    return run


def batch(sequence: TaskSequence, task: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(task)
    first = sequence.first_output(task)
    return torch.randn(6, 1, 16, 16, generator=generator), first + torch.arange(6) % 2


def logits(run: Run, x: Tensor) -> Tensor:
    found: Tensor = run.model(x, task=0)
    return found


@pytest.mark.parametrize("head", ["shared", "all"])
def test_replay_gives_each_task_the_same_weight(head: Any, data_root: Path) -> None:
    """In the third task the batch counts a third, and what is replayed two thirds."""
    method = Replay(size=60, weighting="tasks")
    run = begun(method, head, data_root)
    x, y = batch(run.sequence, 0)
    method.memory.add(x, y, logits(run, x).detach(), y % 2, run.generator)
    inputs = method.inputs(run, lambda: batch(run.sequence, 2))
    even = method.loss(run.model, inputs)
    rest = {name: value for name, value in inputs.tensors.items() if name != "new"}
    fixed = method.loss(run.model, replace(inputs, tensors=rest))
    new, old = fixed.total - fixed.parts["replay"], fixed.parts["replay"]
    torch.testing.assert_close(even.total, new / 3 + old * 2 / 3)


def test_places_of_a_class_stay_as_they_are() -> None:
    """What was stored in the first task is there to the last, no more and no less."""
    memory, generator = Memory(60, 2, places=10), torch.Generator().manual_seed(0)
    held = []
    for task in range(3):
        memory.open(task + 1)
        assert memory.share == 10
        x, classes = torch.randn(100, 3), 2 * task + torch.arange(100) % 2
        memory.add(x, classes, torch.zeros(100, 2), classes, generator)
        held.append(memory.tensors["x"][:20].clone())
    assert held[0].abs().sum(1).min() > 0
    assert held[0].equal(held[1])
    assert held[0].equal(held[2])


def test_lwf_weighs_as_many_times_as_there_are_old_tasks(data_root: Path) -> None:
    """(t - 1) times the cross entropy of softened predictions, up to a constant: its gradient, by plain code."""
    method = LwF(lambda_=0.25, weighting="tasks")
    run = begun(method, "shared", data_root)
    inputs = method.inputs(run, lambda: batch(run.sequence, 2))
    before = logits(run, inputs.x).detach()
    with torch.no_grad():
        for p in run.model.hnet.parameters():
            p.add_(torch.randn(p.shape, generator=run.generator) / 10)
    parameters = list(run.model.common_parameters().values())
    losses = method.loss(run.model, inputs)
    now = logits(run, inputs.x)
    distilled = -(F.softmax(before / 2, 1) * F.log_softmax(now / 2, 1)).sum(1).mean()
    wanted = torch.autograd.grad(F.cross_entropy(now, inputs.y) + 2 * distilled, parameters)
    torch.testing.assert_close(torch.autograd.grad(losses.total, parameters), wanted)


def test_lwf_can_hold_all_outputs(data_root: Path) -> None:
    """Those of current classes too, which it leaves free otherwise."""
    method = LwF(outputs="all")
    run = begun(method, "all", data_root)
    inputs = method.inputs(run, lambda: batch(run.sequence, 2))
    with torch.no_grad():
        list(run.model.common_parameters().values())[-1][-1] += 5  # the last class's bias
    assert method.loss(run.model, inputs).parts["distillation"] > 0.01


def test_options_that_would_do_nothing_are_refused(data_root: Path) -> None:
    with pytest.raises(ArgumentError, match="outputs=all: needs head=all, not head=shared; allowed here: old"):
        begun(LwF(outputs="all"), "shared", data_root)
    sequence = split_sequence(lambda _: load_images("tiny", data_root), num_tasks=3, val_size=20)
    model = wrap(nn.Sequential(nn.Flatten(), nn.Linear(256, 2)), 3, hnet="direct", per_task=["1.*"])
    with pytest.raises(ArgumentError, match="weighting=tasks: needs a network that is the same for all tasks"):
        LwF(weighting="tasks").check(model, sequence)
