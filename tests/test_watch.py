"""A training whose values are no longer finite ends in one line, before they reach the model or a file."""

import json
import math
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from steps import run_of, take
from torch import Tensor, nn

from hnetcl.bn import BatchNormLayer
from hnetcl.bn.gaussian import distance
from hnetcl.cli.main import CONF
from hnetcl.errors import DivergedError
from hnetcl.hnets import DirectHyperNetwork
from hnetcl.methods import Inputs, Losses, Run
from hnetcl.methods.finetune import Finetune
from hnetcl.model import HyperModel
from hnetcl.registry import find
from hnetcl.tasks import TaskSequence, load_images, split_sequence
from hnetcl.training import Observer, RunDirectory, Step, Trainer, TrainingStep
from hnetcl.training.watch import Watch

CPU = torch.device("cpu")


@pytest.fixture
def sequence(data_root: Path) -> TaskSequence:
    return split_sequence(lambda _: load_images("tiny", data_root), num_tasks=3, val_size=20)


class Faulty(nn.Module):
    """Its output is infinite from a call in training on."""

    def __init__(self, calls: float) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls -= self.training
        return x / 0 if self.calls < 0 else x


def model(last: nn.Module | None = None) -> HyperModel:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), BatchNormLayer(16), nn.ReLU())
    net = nn.Sequential(OrderedDict(body=body, head=nn.Linear(16, 2), last=last or nn.Identity()))
    initial = {name: value.detach().clone() for name, value in net.named_parameters()}
    shapes = {name: value.shape for name, value in initial.items()}
    return HyperModel(net, DirectHyperNetwork(shapes, 3, initial=initial))


def trainer(
    sequence: TaskSequence, net: HyperModel, method: Any = None, name: str = "sgd", lr: float = 0.1, **options: Any
) -> Trainer:
    factory = find("optimizer", name)(lr=lr, schedule="constant")
    generator = torch.Generator().manual_seed(0)
    options = {"steps": 5, "batch_size": 16, "log_every": 1, **options}
    return Trainer(net, sequence, method or Finetune(), factory, generator, **options)


HNET = ["hnet.hidden=[16]", "hnet.embedding_dim=8", "hnet.chunk_embedding_dim=8"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([*HNET, "optimizer.lr=1e6"], "task 0, step 2: the output of layer body.2 (BatchNormLayer)"),
        (["method=finetune", "optimizer=sgd", "optimizer.lr=1e20"], "task 0, step 2: the output of layer body.2"),
        (
            ["method=finetune", "optimizer=sgd", "optimizer.lr=1e20", "trainer.steps=1"],
            "task 0, after its last step: the output of layer body.2",
        ),
        (
            [*HNET, "optimizer=adagrad", "optimizer.lr=1e30"],
            "task 0, step 2: the output of layer body.1 (Linear), like its weight",
        ),
    ],
)
def test_a_learning_rate_that_is_too_large_ends_in_one_line(
    overrides: list[str], line: str, tiny: list[str], tmp_path: Path
) -> None:
    small = [word for word in tiny if not word.startswith(("hnet.", "optimizer."))]
    command = [sys.executable, str(CONF.parent / "scripts" / "train.py"), *small, *overrides, f"run.dir={tmp_path / 'run'}"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.startswith(line)
    assert process.stderr.count("\n") == 1
    assert "a smaller optimizer.lr may help" in process.stderr
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    for name in ("model.safetensors", "metrics.json", "statistics.json", "accuracy.csv"):
        assert not (tmp_path / "run" / name).exists()


class Heard(Observer):
    def __init__(self) -> None:
        self.steps: list[Step] = []

    def on_step(self, step: Step) -> None:
        self.steps.append(step)


def test_the_line_names_step_and_layer_and_observers_hear_of_no_such_number(sequence: TaskSequence, tmp_path: Path) -> None:
    """In the second task's third step, with the first task's checkpoint as it was."""
    directory, heard = RunDirectory(tmp_path), Heard()
    directory.create()
    with pytest.raises(DivergedError, match=r"task 1, step 3: the output of layer last \(Faulty\) is not finite"):
        trainer(sequence, model(Faulty(5 + 2))).fit(directory, [heard])
    assert len(heard.steps) == 5 + 2
    assert all(math.isfinite(value) for step in heard.steps for value in ({**vars(step), "losses": 0} | step.losses).values())
    saved = directory.load_checkpoint()
    assert saved is not None
    assert saved["standing"]["done"] == 1
    assert all(value.isfinite().all() for value in saved["model"].values())
    assert not directory.previous.exists()


class Penalty(Finetune):
    """Some value times the sum of all weights."""

    def __init__(self, value: float) -> None:
        self.value = value

    def after_backward(self, run: Run, inputs: Inputs) -> dict[str, Tensor]:
        penalty = self.value * run.model.hnet.flat(torch.arange(1)).square().sum()
        penalty.backward()
        return {"penalty": penalty.detach()}


class Wrong(torch.autograd.Function):
    """The identity, with a gradient that is not a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * math.nan


class WrongGradient(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Wrong.apply(x)
        return y


class Masks(nn.Module):
    """Minus infinity is what a mask is made of; its output is finite."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Buffer(torch.full((2,), -math.inf))
        self.inner = nn.Hardtanh(-math.inf, math.inf)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.inner(self.mask.exp())
        return y


@pytest.mark.parametrize(
    ("net", "method", "what"),
    [
        (model(), Penalty(math.inf), "task 0, step 1: the method's penalty"),
        (model(), Penalty(1e38), "task 0, step 1: the (method's penalty|gradient of hnet)"),
        (model(WrongGradient()), Finetune(), r"task 0, step 1: the gradient of hnet.(own|shared) \(or its norm\)"),
    ],
)
def test_penalty_and_gradients(net: HyperModel, method: Finetune, what: str, sequence: TaskSequence) -> None:
    before = [value.clone() for value in net.parameters()]
    with pytest.raises(DivergedError, match=what):
        trainer(sequence, net, method).fit()
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))


def test_infinite_masks_are_no_fault(sequence: TaskSequence) -> None:
    trainer(sequence, model(Masks())).fit()


def test_what_a_method_learns_is_looked_at(sequence: TaskSequence) -> None:
    class Learns(Finetune):
        def state_dict(self) -> dict[str, Tensor]:
            return {"importance": torch.tensor([1.0, math.nan])}

    with pytest.raises(DivergedError, match=r"task 0, after its last step: what the method keeps \(importance\) is not finite"):
        trainer(sequence, model(), Learns()).fit()


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_latch_of_a_gpu(name: str) -> None:
    """Fused optimizers stand still from the bad step on, and `read` tells which it was: here on a CPU."""
    net = model()
    optimizer, _ = find("optimizer", name)(lr=0.1, schedule="constant").make(net, 5)
    watch, step = Watch(net, 0, optimizer, CPU, latch=True), TrainingStep(net, Finetune(), CPU)
    written = []
    for number in range(5):
        x = torch.randn(8, 1, 16, 16) * (math.nan if number == 2 else 1)
        watch.look(*take(step, run_of(net, 0, optimizer), x, torch.zeros(8, dtype=torch.long)))
        optimizer.step()
        written.append(net.hnet.flat(torch.arange(1)).detach())
        if number < 2:
            watch.read()
    assert not torch.equal(written[0], written[1])
    assert all(torch.equal(written[1], later) for later in written[2:])
    with pytest.raises(DivergedError, match="task 0, step 3: "):
        watch.read()
    with pytest.raises(DivergedError, match="task 0, step 3: "):
        watch.close()


def test_looking_changes_nothing_and_gives_the_norm() -> None:
    net = model()
    optimizer, _ = find("optimizer", "sgd")(lr=0.1, schedule="constant").make(net, 5)
    for parameter in net.hnet.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    losses = Losses(torch.ones(()), {"loss": torch.ones(())}, torch.zeros(1, 2))
    inputs = Inputs(torch.zeros(1, 1, 16, 16), torch.zeros(1, dtype=torch.long), 0)
    for latch in (False, True):
        norm = Watch(net, 0, optimizer, CPU, latch).look(losses, inputs)
        torch.testing.assert_close(norm, torch.tensor(2 * math.sqrt(net.hnet.num_trainable)))


def test_the_error_survives_another_process() -> None:
    error = DivergedError(1, 2, "the loss")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_files_hold_json(tmp_path: Path) -> None:
    """Numbers that are not finite are null there."""
    directory = RunDirectory(tmp_path)
    directory.write_statistics({"a": torch.tensor([[0.0, math.inf]])}, {"a": torch.tensor([[math.nan, 1.0]])})
    directory.write_json(directory.metrics, {"forgetting": math.nan, "names": ["x", (1, -math.inf)]})
    assert json.loads(directory.statistics.read_text()) == {"distances": {"a": [[0, None]]}, "misfits": {"a": [[None, 1]]}}
    assert json.loads(directory.metrics.read_text()) == {"forgetting": None, "names": ["x", [1, None]]}
    assert "NaN" not in directory.statistics.read_text() + directory.metrics.read_text()


def test_a_singular_covariance_has_no_distance_and_no_traceback() -> None:
    huge = torch.full((1, 2, 2), 1e22)
    assert not distance(torch.zeros(2), huge, torch.zeros(2), torch.eye(2)[None], 1e-5).isfinite()
