"""What methods add to the loss."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from choices import allowed
from steps import run_of
from torch import Tensor, nn

from hnetcl import wrap
from hnetcl.errors import ArgumentError
from hnetcl.hnets import HyperNetwork
from hnetcl.methods import Draw, Inputs, Losses, Run
from hnetcl.methods.finetune import Finetune
from hnetcl.methods.joint import Joint
from hnetcl.methods.lwf import LwF
from hnetcl.methods.output_regularizer import OutputRegularizer
from hnetcl.model import HyperModel
from hnetcl.tasks import load_images, split_sequence
from hnetcl.training import Trainer
from hnetcl.training.optimizers import adam

SHAPES = {"weight": (4, 5), "bias": (4,)}


def start(method: OutputRegularizer, hnet: HyperNetwork, task: int) -> None:
    method.hold(hnet, task, torch.optim.Adam(hnet.parameters()), torch.Generator().manual_seed(0))


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
    every, some = OutputRegularizer(beta=0.3), OutputRegularizer(beta=0.3, sample=sample)
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
    kinds: list[Any] = allowed("method", "output_regularizer", "targets")
    methods = [OutputRegularizer(beta=0.3, sample=sample, targets=kind, task_weights=[1, 0.5, 2, 0]) for kind in kinds]
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
    method = OutputRegularizer(beta=0.3, task_weights=[0.5, 3.0])
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
        start(OutputRegularizer(beta=0.3, task_weights=[1.0]), hnet, 2)


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
        OutputRegularizer(beta=beta)


def test_baselines() -> None:
    """Neither adds anything to the loss, nor keeps anything; joint training draws from all tasks so far, in turn."""
    model = HyperModel(nn.Linear(5, 4), HyperNetwork(SHAPES, 5, "full", hidden=(6,)))
    optimizer = torch.optim.Adam(model.hnet.parameters())
    x, y = torch.randn(3, 5), torch.arange(3)
    for method, tasks in ((Finetune(), [2, 2, 2, 2, 2]), (Joint(), [0, 1, 2, 0, 1])):
        run = run_of(model, 2, optimizer)
        method.start_task(run)
        drawn: list[int] = []

        def draw(of: int = 2, drawn: list[int] = drawn) -> tuple[Tensor, Tensor]:
            drawn.append(of)
            return x + of, y

        for run.step in range(5):
            inputs = method.inputs(run, draw)
            losses = method.loss(model, inputs)
            assert losses.total == F.cross_entropy(model(inputs.x, inputs.task), y)
            assert inputs.task == tasks[run.step]
            assert torch.equal(inputs.x, x + inputs.task)
            assert method.after_backward(run, inputs) == {}
        method.end_task(run)
        assert drawn == tasks
        assert method.state_dict() == {}


def test_old_data_is_for_methods_that_say_so(data_root: Path) -> None:
    """A method that asks for them without a word ends the run; the trainer gives a method what its step needs, in order."""

    class Told(Finetune):
        def __init__(self) -> None:
            self.told: list[str] = []

        def start_task(self, run: Run) -> None:
            self.told.append(f"start {run.task}")

        def inputs(self, run: Run, draw: Draw) -> Inputs:
            self.told.append(f"inputs {run.step}")
            return super().inputs(run, draw)

        def after_backward(self, run: Run, inputs: Inputs) -> dict[str, Tensor]:
            assert all(p.grad is not None for p in run.model.hnet.parameters())
            self.told.append("backward")
            return {"own": torch.ones(())}

        def after_step(self, run: Run, inputs: Inputs, losses: Losses) -> None:
            assert losses.parts.keys() == {"loss", "own"}
            self.told.append("step")

        def end_task(self, run: Run) -> None:
            assert run.data is sequence[run.task]
            self.told.append("end")

    class Curious(Finetune):
        def inputs(self, run: Run, draw: Draw) -> Inputs:
            x, y = draw(0)
            return Inputs(x, y, run.task)

    sequence = split_sequence(lambda _: load_images("tiny", data_root), num_tasks=2, val_size=20)
    for method in (Told(), Curious()):
        model = wrap(nn.Sequential(nn.Flatten(), nn.Linear(256, 2)), 2, hnet="full", hidden=[4])
        trainer = Trainer(model, sequence, method, adam(), torch.Generator(), steps=2, batch_size=8)
        if isinstance(method, Told):
            trainer.fit()
            steps = ["inputs 0", "backward", "step", "inputs 1", "backward", "step"]
            assert method.told == ["start 0", *steps, "end", "start 1", *steps, "end"]
        else:
            with pytest.raises(ValueError, match="Curious asks for data of task 0 in task 1, but does not say `sees_old_data"):
                trainer.fit()


@pytest.mark.parametrize("rows", ["task", "shared"])
def test_lwf_leaves_the_logits_of_current_classes_free(rows: Any, data_root: Path) -> None:
    """With one head over all classes: what the model before made of classes that it had not learned is held by nothing."""
    sequence = replace(split_sequence(lambda _: load_images("tiny", data_root), num_tasks=3, val_size=20), head="all")
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.BatchNorm1d(8), nn.Linear(8, 6))
    model, method = wrap(net, 3, hnet="direct", per_task=[], rows=rows), LwF(lambda_=1.0)
    assert model.is_conditioned == (rows == "task")
    run = Run(model, 1, sequence, torch.optim.Adam(model.hnet.parameters()), torch.Generator())
    method.check(model, sequence)
    method.start_task(run)
    inputs = method.inputs(run, lambda: (torch.randn(5, 1, 16, 16), torch.tensor([2, 3, 2, 3, 2])))
    held = []
    for change in ([0, 0, 3, -2, 5, 1], [1, -1, 0, 0, 0, 0]):
        with torch.no_grad():
            model.hnet.get_parameter("shared.3/bias").add_(torch.tensor(change))
        held.append(method.loss(model, inputs).parts["distillation"].item())
    assert held[0] == pytest.approx(0, abs=1e-6)
    assert held[1] > 0.01
