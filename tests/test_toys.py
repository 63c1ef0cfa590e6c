"""Toys that need no data: points of the plane, and functions of a number; and the loss that belongs to a sequence."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stops import Stops
from torch import Tensor, nn

import hnetcl
from hnetcl.build import build
from hnetcl.cli.jobs import evaluate, finished_run, train
from hnetcl.config import Config, EvaluationConfig
from hnetcl.errors import ArgumentError
from hnetcl.hnets import DirectHyperNetwork
from hnetcl.importance import fisher_information, parameter_fisher
from hnetcl.registry import make, names, register
from hnetcl.tasks import AsTheyAre, Split, Task, TaskSequence, loss_of, score
from hnetcl.tracking import comparison_table, no_better_than_the_mean
from hnetcl.tracking.learned import learned, look
from hnetcl.training import Protocol, RunDirectory, accuracies

CPU = torch.device("cpu")
Compose = Callable[..., Config]
ComposeEvaluation = Callable[..., EvaluationConfig]
QUICK = ["trainer.threads=1", "device=cpu", "net.hidden=[8]", "hnet=full", "hnet.hidden=[8]", "hnet.embedding_dim=4"]


def toy(name: str, **values: object) -> TaskSequence:
    sequence: TaskSequence = make("task", {"name": name, **values}, seed=0, device=CPU)
    return sequence


def test_functions_are_those_of_von_oswald_and_go_on() -> None:
    """As their public code has them: intervals, functions without noise on the grid for tests."""
    functions = (lambda x: x + 3, lambda x: 2 * x**2 - 1, lambda x: (x - 3) ** 3, lambda x: 2 * (x - 6) ** 4 - 1)
    sequence = toy("regression_1d", num_tasks=4)
    for t, (task, function) in enumerate(zip(sequence.tasks, functions, strict=True)):
        x, y = task.test.images.flatten().double(), task.test.labels.double()
        torch.testing.assert_close(x, torch.linspace(3 * t - 4, 3 * t - 2, 50, dtype=torch.float64), atol=2e-6, rtol=0)
        torch.testing.assert_close(y, function(x), atol=2e-5, rtol=0)
        for split in (task.train, task.val):
            x, y = split.images.flatten().double(), split.labels.double()
            assert 3 * t - 4 <= x.min() <= x.max() <= 3 * t - 2
            assert 0.03 < (y - function(x)).std() < 0.07


def test_points_come_from_the_mixture_of_their_class() -> None:
    """The classifier that knows the mixtures is right about nearly all; the classes of a task are as many."""
    sequence = toy("gaussians", num_tasks=3, classes_per_task=3, modes=2)
    for task in sequence.tasks:
        means = np.array(task.facts["means"])
        assert means.shape == (3, 2, 2)
        np.testing.assert_allclose(np.linalg.norm(means, axis=-1), 2.0, atol=1e-5)
        points = task.test.images.flatten(1).numpy()
        squares = ((points[:, None, None] - means) ** 2).sum(-1)  # [N, classes, modes]
        density = np.exp(-squares / (2 * 0.3**2)).sum(-1)
        assert (np.argmax(density, 1) == task.test.labels.numpy()).mean() > 0.98
        counts = task.train.labels.bincount()
        assert counts.max() - counts.min() <= 1
    assert not np.allclose(sequence[0].facts["means"], sequence[1].facts["means"])


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("gaussians", {"classes_per_task": 4, "train_size": 3}, "train_size=3: must be at least 4: a point for each class"),
        ("gaussians", {"std": 0.0}, "std=0.0: must be greater than 0"),
        ("gaussians", {"classes_per_task": 1}, "classes_per_task=1: must be at least 2"),
        ("regression_1d", {"noise": -1.0}, "noise=-1.0: must be at least 0"),
        ("regression_1d", {"val_size": 1}, "dataset=regression_1d: task 0 has validation targets that are all the same, for"),
    ],
)
def test_sizes_are_refused_in_one_line(name: str, values: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        toy(name, **values)
    assert str(caught.value).startswith(message)


def task_of(y: Tensor, outputs: tuple[str, ...] = ("y",)) -> Task:
    split = Split(torch.randn(len(y), 3, 1, 1), y)
    return Task(outputs, split, Split(split.images[:0], y[:0]), split, AsTheyAre(torch.zeros(3, 1, 1), torch.ones(3, 1, 1)))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (task_of(torch.ones(4)), "training targets that are all the same"),
        (task_of(torch.arange(4)), "training targets of torch.int64, but a regression needs float32"),
        (task_of(torch.tensor([0.0, math.nan])), "training targets that are not finite"),
        (task_of(torch.arange(4.0), ("x", "y")), "names 2 outputs, but a regression has one"),
    ],
)
def test_what_is_no_regression_is_refused(task: Task, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^dataset=mine: task 0 (has )?{message}"):
        TaskSequence("mine", (task,), loss="mean_squared_error")


def test_r_squared_is_that_of_the_whole_split_whatever_the_batches() -> None:
    sequence = TaskSequence("mine", (task_of(torch.randn(23)),), loss="mean_squared_error")
    model = hnetcl.wrap(nn.Sequential(nn.Flatten(), nn.Linear(3, 1)), 1, hnet=DirectHyperNetwork, per_task=[])
    split = sequence[0].test
    with torch.no_grad():
        outputs = model(split.images, 0)[:, 0].double()
    y = split.labels.double()
    expected = 1 - float(((y - outputs) ** 2).mean() / y.var(correction=0))
    for size in (2, 7, 100):
        assert accuracies(model, sequence, Protocol(batch_size=size)).right.tolist() == pytest.approx([expected], abs=1e-6)
    assert float(score(sequence.loss, outputs[:, None], y)) == pytest.approx(expected)
    assert float(loss_of(sequence.loss, outputs[:, None], y)) == pytest.approx(float(((y - outputs) ** 2).mean()))


def test_fisher_information_of_linear_regression() -> None:
    """Of the Gaussian likelihood whose variance is 1/2: 2 x x^T, whatever the targets."""
    torch.manual_seed(0)
    model = hnetcl.wrap(nn.Sequential(nn.Flatten(), nn.Linear(3, 1)), 1, hnet=DirectHyperNetwork, per_task=[])
    x, y = torch.randn(500, 3, 1, 1), torch.randn(500)
    ones = torch.ones(500, 1)
    inputs = torch.cat([x.flatten(1), ones], 1)  # the bias' is 1
    expected = 2 * inputs.square().mean(0)
    found = {
        kind: parameter_fisher(model, 0, x, y, kind, torch.Generator().manual_seed(0), loss="mean_squared_error")
        for kind in ("exact", "sampled", "empirical")
    }
    flat = {kind: torch.cat([each.flatten() for each in values.values()]).sort().values for kind, values in found.items()}
    torch.testing.assert_close(flat["exact"], expected.sort().values)
    torch.testing.assert_close(flat["sampled"], expected.sort().values, rtol=0.25, atol=0)
    with torch.no_grad():
        errors = model(x, 0)[:, 0] - y
    gradients = 2 * errors[:, None] * inputs
    torch.testing.assert_close(flat["empirical"], gradients.square().mean(0).sort().values)
    hyper = hnetcl.wrap(nn.Sequential(nn.Flatten(), nn.Linear(3, 1)), 2, hidden=[4])
    written = fisher_information(hyper, 0, x, torch.Generator().manual_seed(0), loss="mean_squared_error")
    torch.testing.assert_close(written.sort().values, expected.sort().values, rtol=0.25, atol=0)


def test_tables_of_regressions_say_what_their_numbers_are() -> None:
    """The mean squared error is what R^2 leaves of the targets' variance."""
    header, _, row = comparison_table({1: ["y"]}, [0.75], [0.5, 0.8], [2.0]).splitlines()
    assert [cell.strip() for cell in header.split("|")] == ["task", "output", "R^2", "mean squared error", "recorded"]
    assert [cell.strip() for cell in row.split("|")] == ["1", "y", "0.750000", "0.500000", "0.800000"]
    assert no_better_than_the_mean([0.0, 0.1, -3.0]) == "no better than the mean of the targets: tasks 0, 2"
    assert no_better_than_the_mean([0.1]) == ""


REGRESSION = sorted(set(names("method")) - {"lwf", "gdumb", "icarl"})


@pytest.mark.parametrize("method", REGRESSION)
def test_every_method_learns_a_regression_and_evaluates_it(
    method: str, compose: Compose, compose_evaluation: ComposeEvaluation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the last digit, and the model can be loaded without the data."""
    own = ["method.importance=fisher"] if method == "output_regularizer" else []
    hnet = QUICK[3:] if method == "output_regularizer" else []
    small = [*QUICK[:3], *hnet, "trainer.steps=8", "observers=[]", "task.num_tasks=2", f"run.dir={tmp_path / 'run'}"]
    train(compose("task=regression_1d", f"method={method}", *own, *small))
    recorded = RunDirectory(tmp_path / "run").read_accuracy()
    found = evaluate(compose_evaluation(f"run={tmp_path / 'run'}", "device=cpu"))
    assert found == recorded[-1]
    assert "not the recorded numbers" not in capsys.readouterr().out
    assert hnetcl.load(tmp_path / "run", device="cpu")(torch.zeros(2, 1, 1, 1), 1).shape == (2, 1)


REFUSED = {
    "method=gdumb": "method.name=gdumb: keeps as many images of each class, and the sequence is a regression",
    "method=icarl": "head=all: is for classes",
    "method=lwf": "method.name=lwf: compares probabilities of classes, and the sequence is a regression",
    "method=ewc method.labels=predicted": "method.labels=predicted: is a class, and the sequence is a regression; allowed: emp",
    "method=online_ewc method.labels=predicted": "method.labels=predicted: is a class, and the sequence is a regression",
    "scenario=class": "scenario=class: is about classes, and the sequence is a regression; allowed: task, domain",
    "scenario=domain": "scenario=domain: tasks are inferred by their classes, and the sequence is a regression; allowed: task",
    "optimized_metric=calibration_error": "optimized_metric=calibration_error: is about classes, and the sequence is a",
    "head=all": "head=all: is for classes, and regression_1d is a regression; allowed: task, shared",
    "method=finetune scenario=class": "head=all: is for classes, and regression_1d is a regression",
    "net=lenet": "net.channels=[20, 48]: too many convolutions for images of (1, 1, 1)",
}


@pytest.mark.parametrize(("words", "message"), REFUSED.items())
def test_what_needs_classes_is_refused_in_one_line(words: str, message: str, compose: Compose, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        train(compose("task=regression_1d", "observers=[]", f"run.dir={tmp_path / 'run'}", *words.split()))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["output_regularizer", pytest.param("finetune", marks=pytest.mark.slow)])
def test_the_hypernetwork_learns_the_functions_and_finetuning_forgets(
    method: str, compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    config = compose("task=regression_1d", f"method={method}", "trainer.threads=1", f"run.dir={run}", "device=cpu")
    train(config)
    R = RunDirectory(run).read_accuracy()
    assert all(R[1 + t][t] >= 0.98 for t in range(3))
    assert (min(R[-1]) >= 0.98) == (method == "output_regularizer")
    told = capsys.readouterr().out
    assert "R^2 after its training" in told
    assert ("no better than the mean of the targets" in told) == (min(R[-1]) <= 0)
    assert {path.suffix for path in (run / "figures").glob("learned.*")} == {".png", ".pdf"}
    assert finished_run(RunDirectory(run), config)[0]
    assert "R^2 after its training" in capsys.readouterr().out
    assert json.loads((run / "tasks.json").read_text())["tasks"][0]["loss"] == "mean_squared_error"


def test_the_hypernetwork_learns_mixtures_and_its_regions_are_drawn(compose: Compose, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(compose("task=gaussians", "trainer.steps=150", "task.num_tasks=3", "trainer.threads=1", f"run.dir={run}"))
    assert min(RunDirectory(run).read_accuracy()[-1]) >= 0.95
    assert (run / "figures" / "learned.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("words", ["task=gaussians head=all hnet=direct method=replay", "task=regression_1d"])
def test_pictures_show_what_the_model_says_and_leave_it_as_it_is(words: str, compose: Compose) -> None:
    parts = build(compose("task.num_tasks=2", *words.split(), "net.hidden=[8]"), CPU)
    model, sequence = parts.model.train(), parts.sequence
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = look(model, sequence, 2)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    task = sequence[1]
    with torch.no_grad():
        outputs = model.eval()(torch.from_numpy(found[1].x)[:, :, None, None], 1)
    first = sequence.first_output(1)
    expected = outputs[:, first : first + 2].argmax(1) if sequence.loss == "cross_entropy" else outputs[:, 0]
    torch.testing.assert_close(torch.from_numpy(found[1].outputs), expected)
    assert found[1].labels.tolist() == task.test.labels[:300].tolist()
    figure = learned(found)
    assert len(figure.axes) == (2 if sequence.loss == "cross_entropy" else 1)


@pytest.mark.usefixtures("users_parts")
def test_a_resumed_run_is_the_undisturbed_one(compose: Compose, tmp_path: Path) -> None:
    """Tensor for tensor, and in its pictures."""
    register("observer", "stops")(Stops)
    Stops.lives = 1
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    own = [
        "task=regression_1d",
        "method=replay",
        *QUICK[:3],
        "trainer.steps=6",
        "task.num_tasks=2",
        "observers=[figures,stops]",
    ]
    train(compose(*own, f"run.dir={whole}"))
    Stops.lives = 0
    with pytest.raises(SystemExit):
        train(compose(*own, f"run.dir={halves}"))
    assert not (halves / "model.safetensors").exists()
    train(compose(*own, f"run.dir={halves}", "resume=true"))
    first, second = (load_file(run / "model.safetensors") for run in (whole, halves))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("accuracy.csv", "figures/learned.png", "figures/accuracy_curves.pdf"):
        assert (whole / name).read_bytes() == (halves / name).read_bytes()


@pytest.mark.parametrize("hnet", names("hnet"))
@pytest.mark.parametrize("task", ["gaussians", "regression_1d"])
def test_every_hypernetwork_writes_a_network_for_points(task: str, hnet: str, compose: Compose) -> None:
    parts = build(compose(f"task={task}", f"hnet={hnet}"), CPU)
    x = parts.sequence[0].preprocess(parts.sequence[0].test.images[:5])
    assert parts.model.eval()(x, 1).shape == (5, parts.sequence.num_outputs)


def test_a_sequence_of_classes_has_the_manifest_that_it_had() -> None:
    """Runs of earlier versions are the same runs."""
    sequence = toy("gaussians", num_tasks=1)
    assert "loss" not in sequence.manifest()["tasks"][0]
    shared = replace(toy("regression_1d"), head="shared")
    assert shared.num_outputs == 1
