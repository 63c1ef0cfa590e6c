"""The loop's own promises, without the command line."""

import math
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stops import StopsOnce
from torch import Tensor, nn

from hnetcl.bn import BATCH, BatchNormLayer, auxiliary_loss, row_parameters, writable_parameters
from hnetcl.bn.gaussian import distance
from hnetcl.errors import ArgumentError, StoppedError
from hnetcl.hnets import BaseHyperNetwork, DirectHyperNetwork, HyperNetwork
from hnetcl.methods import Inputs, Losses, Method, Run
from hnetcl.methods.finetune import Finetune
from hnetcl.methods.output_regularizer import OutputRegularizer
from hnetcl.methods.replay import Replay
from hnetcl.methods.si import SI
from hnetcl.model import HyperModel
from hnetcl.nets import MLP
from hnetcl.registry import find, names
from hnetcl.tasks import Split, TaskSequence, batch_sizes, load_images, split_sequence
from hnetcl.training import (
    Observer,
    Protocol,
    RunDirectory,
    Step,
    TaskEnd,
    Trainer,
    accuracy,
    engine,
    resolve_device,
)
from hnetcl.training.optimizers import adam, sgd
from hnetcl.training.statistics import statistics_report

ADAM = adam(lr=0.01)


@pytest.fixture
def sequence(data_root: Path) -> TaskSequence:
    return split_sequence(lambda _: load_images("tiny", data_root), num_tasks=3, val_size=20)


def model(sequence: TaskSequence) -> HyperModel:
    torch.manual_seed(0)
    net = MLP(sequence.in_shape, sequence.num_classes, hidden=(16,), norm=BatchNormLayer)
    initial = {name: value.detach().clone() for name, value in net.named_parameters()}
    shapes = {name: value.shape for name, value in initial.items()}
    return HyperModel(
        net, HyperNetwork(shapes, len(sequence), initial=initial, hidden=(16,), embedding_dim=8, chunk_embedding_dim=8)
    )


def trainer(sequence: TaskSequence, method: Method | None = None, **options: Any) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    options = {"steps": 20, "batch_size": 16, "log_every": 8, **options}
    return Trainer(model(sequence), sequence, method or OutputRegularizer(beta=0.1), ADAM, generator, **options)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The same numbers in the same places; NaN where nothing was evaluated."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


class Listener(Observer):
    """Keeps all that it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_task_start(self, task: int, steps: int, steps_before: int) -> None:
        self.told.append((task, steps, steps_before))

    def on_step(self, step: Step) -> None:
        self.told.append(step)

    def on_task_end(self, end: TaskEnd) -> None:
        self.told.append(end)


def test_observers_hear_every_event_in_order(sequence: TaskSequence) -> None:
    listener = Listener()
    result = trainer(sequence).fit(observers=[listener])
    assert [event for event in listener.told if isinstance(event, tuple)] == [(0, 20, 0), (1, 20, 20), (2, 20, 40)]
    steps = [event for event in listener.told if isinstance(event, Step)]
    assert [(s.task, s.step) for s in steps] == [(t, s) for t in range(3) for s in (1, 9, 17, 20)]
    assert steps[0].learning_rate == 0.01
    assert steps[3].learning_rate < 0.001
    assert [s.losses.keys() for s in steps[:4]] == [{"loss"}] * 4
    assert steps[7].losses["penalty"] > 0
    assert all(s.gradient_norm > 0 and s.loss > 0 and 0 <= s.accuracy <= 1 for s in steps)
    ends = [event for event in listener.told if isinstance(event, TaskEnd)]
    same(ends[-1].matrix, result.matrix)
    assert ends[0].matrix[1:].isnan().all()
    assert ends[0].embeddings is not None
    assert ends[0].embeddings.shape == (3, 8)


def test_listening_changes_nothing(sequence: TaskSequence) -> None:
    silent, heard = trainer(sequence), trainer(sequence, log_every=1)
    same(silent.fit().matrix, heard.fit(observers=[Listener()]).matrix)
    for name, value in silent.model.saved_tensors().items():
        assert torch.equal(value, heard.model.saved_tensors()[name])


def test_epochs_are_passes_over_a_tasks_own_images(sequence: TaskSequence) -> None:
    listener = Listener()
    result = trainer(sequence, steps=None, epochs=2, batch_size=30).fit(observers=[listener])
    assert listener.told[0] == (0, 2 * (100 // 30), 0)
    assert result.steps == 18


def test_the_untrained_row_and_the_diagonal(sequence: TaskSequence) -> None:
    result = trainer(sequence, steps=60).fit()
    assert result.untrained.shape == (3,)
    assert (result.matrix.diagonal() > 0.9).all()
    assert result.matrix.dtype == torch.float64


def test_accuracy_counts_by_hand(sequence: TaskSequence) -> None:
    net, task = model(sequence).eval(), sequence[1]
    predicted = net(task.preprocess(task.test.images), 1).argmax(1)
    expected = float((predicted == task.test.labels).double().mean())
    for batch_size in (7, 1000):
        assert accuracy(net, 1, task, task.test, Protocol(batch_size=batch_size)) == (expected, 1.0, expected)


def test_a_checkpoint_is_plain_and_keeps_the_one_before(sequence: TaskSequence, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.create()
    trainer(sequence, steps=2).fit(directory)
    newest = directory.load_checkpoint()
    directory.checkpoint.unlink()
    before = directory.load_checkpoint()
    assert newest
    assert before
    assert (newest["standing"]["done"], before["standing"]["done"]) == (3, 2)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": SI()}, "method=SI: .* method=OutputRegularizer"),
        ({"steps": 3}, "steps=3: .* steps=2"),
        ({"method": OutputRegularizer(beta=9.0)}, r"method\.beta=9\.0: .* method\.beta=0\.1"),
        ({"scenario": "class"}, r"protocol\.scenario=class: .* protocol\.scenario=task"),
        ({"evaluate": "all"}, "evaluate=all: .* evaluate=seen"),
    ],
)
def test_another_training_does_not_go_on_from_a_checkpoint(
    sequence: TaskSequence, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    directory = RunDirectory(tmp_path)
    directory.create()
    trainer(sequence, steps=2).fit(directory)
    with pytest.raises(ArgumentError, match=told):
        trainer(sequence, **{"steps": 2, **options}).fit(directory)


class Looks(Observer):
    """Tries to train in the directory that is in use."""

    def __init__(self, other: Trainer, directory: RunDirectory) -> None:
        self.other, self.directory, self.lines = other, directory, [""]

    def on_task_end(self, end: TaskEnd) -> None:
        with pytest.raises(ArgumentError) as caught:
            self.other.fit(self.directory)
        self.lines.append(str(caught.value))


def test_a_directory_is_one_trainings_at_a_time(sequence: TaskSequence, tmp_path: Path) -> None:
    """From Python, too; afterwards it is free."""
    directory, other = RunDirectory(tmp_path), RunDirectory(tmp_path)
    directory.create()
    looks = Looks(trainer(sequence, steps=2), other)
    result = trainer(sequence, steps=2).fit(directory, [looks])
    assert all(line.startswith(f"run.dir={tmp_path}: is in use by process ") for line in looks.lines[1:])
    assert len(looks.lines) == 1 + 3
    same(trainer(sequence, steps=2).fit(other).matrix, result.matrix)


@pytest.mark.parametrize("minutes", [None, 10])
def test_a_training_that_is_stopped_goes_on_within_the_task(
    minutes: float | None, sequence: TaskSequence, tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path)
    directory.create()
    with pytest.raises(StoppedError, match="in task 0, after step 2"):
        trainer(sequence, steps=9, checkpoint_minutes=minutes).fit(directory, stop=StopsOnce(3 + 1))
    result = trainer(sequence, steps=9).fit(directory)
    same(result.matrix, trainer(sequence, steps=9).fit().matrix)


class Counts(SI):
    """Keeps something of its steps that no checkpoint knows of."""

    def after_step(self, run: Run, inputs: Inputs, losses: Losses) -> None:
        self.steps = getattr(self, "steps", 0) + 1


def test_a_method_that_hides_its_steps_goes_on_between_tasks(sequence: TaskSequence, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.create()
    with pytest.raises(StoppedError, match="at the beginning"):
        trainer(sequence, Counts(), steps=9).fit(directory, stop=StopsOnce(5))
    assert not directory.has_checkpoint()


def test_replay_trains_without_the_command_line(sequence: TaskSequence) -> None:
    assert trainer(sequence, Replay(size=6), steps=3).fit().matrix[-1].isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 1}, "steps=20: give steps or epochs"),
        ({"steps": None}, "steps=None: give steps or epochs"),
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"batch_size": 0}, "batch_size=0: must be at least 2"),
        ({"log_every": 0}, "log_every=0: must be at least 1"),
        ({"active_classes": "some"}, "active_classes=some: allowed: all, current, seen"),
        ({"method": OutputRegularizer(task_weights=[1.0] * 7)}, "task_weights"),
        ({"method": Replay(size=5)}, "size=5: must be at least 6: one sample for each class of all tasks"),
    ],
)
def test_refused_trainer_arguments(sequence: TaskSequence, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        trainer(sequence, **options)


@pytest.mark.parametrize(
    ("maker", "options", "message"),
    [
        (adam, {"lr": 0}, "lr=0: must be greater than 0"),
        (adam, {"lr": float("nan")}, "lr=nan: must be a finite number, greater than 0"),
        (adam, {"schedule": "square"}, "schedule=square: allowed: constant, cosine, linear, step"),
        (adam, {"warmup": 1.0}, "warmup=1.0: must be at least 0 and less than 1"),
        (adam, {"weight_decay": -1}, "weight_decay=-1: must be at least 0"),
        (sgd, {"nesterov": True}, "nesterov=True: needs a momentum above 0"),
    ],
)
def test_refused_optimizer_arguments(maker: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{message}"):
        maker(**options)
    with pytest.raises(ArgumentError, match=r"^optimizer=adm: did you mean adam\?"):
        find("optimizer", "adm")


OPTIONS: dict[str, dict[str, Any]] = {
    "adagrad": {"lr_decay": 0.1},
    "rmsprop": {"momentum": 0.9, "centered": True},
    "sgd": {"momentum": 0.9},
}


@pytest.mark.parametrize(("name", "options"), [(name, OPTIONS.get(name, {})) for name in names("optimizer")])
def test_weight_decay_leaves_other_tasks_alone(name: str, options: dict[str, Any]) -> None:
    """What belongs to a task moves only when that task is trained, rows of learnable statistics included."""
    net = nn.Sequential(OrderedDict(body=nn.Linear(3, 3), norm=BatchNormLayer(3, stats="learnable"), head=nn.Linear(3, 2)))
    hnet = DirectHyperNetwork({name: value.shape for name, value in writable_parameters(net).items()}, 2)
    model = HyperModel(net, hnet)
    rows = [value.detach().clone() for value in row_parameters(net).values()]
    own, shared = hnet.own.detach().clone(), hnet.shared["body/weight"].detach().clone()
    optimizer, schedule = find("optimizer", name)(lr=0.01, schedule="constant", weight_decay=0.5, **options).make(model, 5)
    for _ in range(5):
        optimizer.zero_grad()
        outputs = model(torch.randn(8, 3) + 1, 1)
        (0 * outputs.sum() + auxiliary_loss(net) + hnet(1)["head.weight"].sum()).backward()
        optimizer.step()
        schedule.step()
    for before, now in zip(rows, row_parameters(net).values(), strict=True):
        assert torch.equal(before[0], now[0])
        assert (before[1] != now[1]).all()
    assert torch.equal(hnet.own[0], own[0])
    assert not torch.equal(hnet.own[1], own[1])
    assert hnet.shared["body/weight"].abs().sum() < shared.abs().sum()


def test_the_engine_sets_and_puts_back() -> None:
    before = torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    others = random.getstate(), str(np.random.get_state())
    with engine(seed=5, threads=1, deterministic=True):
        first, drawn = torch.rand(3), (random.random(), np.random.rand())
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
    with engine(seed=5):
        assert torch.equal(torch.rand(3), first)
        assert (random.random(), np.random.rand()) == drawn
    with pytest.raises(ZeroDivisionError), engine(seed=5):
        1 / 0  # noqa: B018
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == others
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before[1:]


class Noise(nn.Module):
    """In training its output depends on Python's, numpy's and torch's generators, and on one way each keeps a spare number."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        spare = random.gauss(0, 1) + np.random.normal()
        return x * (1 + random.random() + np.random.rand() + 0.1 * spare) + torch.rand(())


class Killed(Observer):
    """Ends the run when its last task begins."""

    def on_task_start(self, task: int, steps: int, steps_before: int) -> None:
        if task == 2:
            raise KeyboardInterrupt


def test_a_resumed_run_draws_what_it_would_have_drawn(sequence: TaskSequence, tmp_path: Path) -> None:
    """Whichever generator a user's network draws from."""
    directories = []
    for name in ("undisturbed", "resumed"):
        directories.append(RunDirectory(tmp_path / name))
        directories[-1].create()

    def fit(directory: RunDirectory, *observers: Observer) -> dict[str, Tensor]:
        with engine(seed=3):
            training = trainer(sequence)
            training.model.net.body.append(Noise())  # type: ignore[operator, union-attr]
            torch.manual_seed(3)
            training.fit(directory, observers)
            return training.model.saved_tensors()

    expected = fit(directories[0])
    with pytest.raises(KeyboardInterrupt):
        fit(directories[1], Killed())
    random.random(), np.random.rand()
    found = fit(directories[1])
    for name, value in expected.items():
        assert torch.equal(value, found[name])


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    for name in ("cuda:99", "gpu", ""):
        with pytest.raises(ArgumentError, match=f"device={name}: not available on this machine; allowed: auto, cpu"):
            resolve_device(name)


def test_finetuning_overwrites_what_the_regularizer_holds(sequence: TaskSequence) -> None:
    """The main point of the whole package, at its smallest: what is written for the first task while others are trained."""
    moved = []
    for method in (OutputRegularizer(beta=1.0), Finetune()):
        listener = Written()
        training = trainer(sequence, method, steps=60)
        listener.hnet = training.model.hnet
        training.fit(observers=[listener])
        first, *_, last = listener.told
        moved.append(float((last - first).norm()))
    assert moved[0] < 0.2 * moved[1]


class Written(Observer):
    """Keeps what is written for the first task at the end of every task."""

    def __init__(self) -> None:
        self.told: list[torch.Tensor] = []
        self.hnet: BaseHyperNetwork | None = None

    def on_task_end(self, end: TaskEnd) -> None:
        assert self.hnet is not None
        self.told.append(self.hnet.flat(torch.tensor([0])).detach())


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 3, 2]), (8, 4, [4, 4]), (5, 4, [3, 2]), (1, 4, [1]), (3, 2, [2, 1]), (2, 1, [1, 1])],
)
def test_no_batch_of_one_is_left(count: int, size: int, expected: list[int]) -> None:
    assert batch_sizes(count, size) == expected


def test_evaluation_by_the_batchs_own_statistics(sequence: TaskSequence) -> None:
    """Takes any number of images but one, which is refused in one line; a task's row takes that too."""
    net, task = model(sequence), sequence[0]
    for count, size in ((9, 4), (5, 4)):
        split = Split(task.test.images[:count], task.test.labels[:count])
        accuracy(net, 0, task, split, Protocol(batch_size=size), stats=BATCH)
    one = Split(task.test.images[:1], task.test.labels[:1])
    with pytest.raises(ArgumentError, match=r"\Astats=batch: can't be used for a batch of one image.*\Z"):
        accuracy(net, 0, task, one, Protocol(), stats=BATCH)
    accuracy(net, 0, task, one, Protocol())


class _Recurrent(nn.Module):
    """Its norm layer runs twice in a forward."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(features, 8), BatchNormLayer(8), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x.flatten(1)))
        y: Tensor = self.head(self.norm(2 * x + 1))
        return y


def test_a_layer_that_runs_twice_is_reported_once(sequence: TaskSequence) -> None:
    """Its inputs of one task belong together; modes that a user has set are restored module by module."""
    torch.manual_seed(0)
    net = _Recurrent(math.prod(sequence.in_shape), sequence.num_classes)
    shapes = {name: p.shape for name, p in net.named_parameters()}
    whole = HyperModel(net, HyperNetwork(shapes, len(sequence), "full", hidden=(8,), embedding_dim=4))
    net.head.eval()
    modes = {m: m.training for m in whole.modules()}
    apart, misfit = statistics_report(whole, sequence, len(sequence), 64)
    assert {m: m.training for m in whole.modules()} == modes
    assert apart["norm"].shape == (3, 3)
    inputs: list[Tensor] = []
    data = sequence[1]
    handle = net.norm.register_forward_pre_hook(lambda layer, args: inputs.append(args[0]))
    with torch.no_grad():
        whole.eval()(data.preprocess(data.train.images[:1000]), 1)
    handle.remove()
    seen = torch.cat(inputs).double()
    now = seen.mean(0), seen.var(0).reshape(-1, 1, 1)
    expected = distance(torch.zeros(8), torch.ones(8, 1, 1), *now, net.norm.eps)
    torch.testing.assert_close(misfit["norm"][1], expected, rtol=1e-4, atol=1e-6)
