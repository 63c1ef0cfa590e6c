"""What is tested after each task, and what that leaves in R, in the metrics and in the files of a run."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hnetcl.bn import BatchNormLayer
from hnetcl.cli.jobs import train
from hnetcl.cli.main import CONF
from hnetcl.config import Config
from hnetcl.errors import ArgumentError
from hnetcl.hnets import HyperNetwork
from hnetcl.inference import candidates, compare_tasks
from hnetcl.methods.output_regularizer import OutputRegularizer
from hnetcl.metrics import summary
from hnetcl.model import HyperModel
from hnetcl.nets import MLP
from hnetcl.nets.blocks import MaxPool
from hnetcl.tasks import TaskSequence, load_images, permuted_sequence
from hnetcl.training import (
    Observer,
    Protocol,
    Result,
    RunDirectory,
    TaskEnd,
    Trainer,
    accuracies,
    statistics_report,
)
from hnetcl.training.optimizers import adam

TASKS = 4


@pytest.fixture
def sequence(data_root: Path) -> TaskSequence:
    return permuted_sequence(lambda _: load_images("tiny", data_root), num_tasks=TASKS, val_size=10)


class Reports(Observer):
    """After which tasks statistics were compared."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def on_task_end(self, end: TaskEnd) -> None:
        self.told += [end.task] * bool(end.distances)


def trainer(sequence: TaskSequence, **options: Any) -> Trainer:
    torch.manual_seed(0)
    net = MLP(sequence.in_shape, sequence.num_classes, hidden=(16,), norm=BatchNormLayer)
    initial = {name: value.detach().clone() for name, value in net.named_parameters()}
    shapes = {name: value.shape for name, value in initial.items()}
    model = HyperModel(
        net, HyperNetwork(shapes, len(sequence), initial=initial, hidden=(16,), embedding_dim=8, chunk_embedding_dim=8)
    )
    generator = torch.Generator().manual_seed(0)
    return Trainer(model, sequence, OutputRegularizer(beta=0.1), adam(lr=0.01), generator, steps=15, batch_size=16, **options)


def filled(result: Result) -> list[list[int]]:
    """The tasks of which there is an accuracy, row by row, the untrained model's row first."""
    rows = [result.untrained, *result.matrix]
    return [(~row.isnan()).nonzero().flatten().tolist() for row in rows]


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_the_default_tests_what_the_metrics_need(scenario: str, sequence: TaskSequence) -> None:
    """Whatever it leaves out, every metric is as if all had been tested, and every number is the same."""
    seen, everything = (trainer(sequence, scenario=scenario, evaluate=which).fit() for which in ("seen", "all"))
    assert filled(seen) == [[0, 1, 2, 3], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert filled(everything) == [[0, 1, 2, 3]] * 5
    assert summary(seen.matrix, seen.untrained) == summary(everything.matrix, everything.untrained)
    assert torch.equal(seen.matrix[~seen.matrix.isnan()], everything.matrix[~seen.matrix.isnan()])
    for one, other in ((seen.known, everything.known), (seen.aware, everything.aware)):
        assert torch.equal(one, other)


def test_the_least_is_each_task_at_its_own_end_and_all_at_the_last(sequence: TaskSequence) -> None:
    last, everything = (trainer(sequence, evaluate=which).fit() for which in ("last", "all"))
    assert filled(last) == [[], [0], [1], [2], [0, 1, 2, 3]]
    found, expected = (summary(result.matrix, result.untrained) for result in (last, everything))
    for name in ("average_accuracy", "bwt"):
        assert found[name] == expected[name]
    for name in ("forgetting", "fwt"):
        assert math.isnan(found[name])


@pytest.mark.parametrize(("which", "told"), [("each", [0, 1, 2, 3]), ("last", [3]), ("none", [])])
def test_statistics_are_compared_after_these_tasks(which: str, told: list[int], sequence: TaskSequence) -> None:
    reports = Reports()
    trainer(sequence, statistics=which).fit(observers=[reports])
    assert reports.told == told


def test_the_report_is_the_same_whatever_the_batches(sequence: TaskSequence) -> None:
    model = trainer(sequence).model
    one, many = (statistics_report(model, sequence, 2, size) for size in (1000, 64))
    torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("option", "rule"), [("evaluate", "all, last, seen"), ("statistics", "each, last, none")])
def test_refused(option: str, rule: str, sequence: TaskSequence) -> None:
    with pytest.raises(ArgumentError, match=f"{option}=some: .*allowed: {rule}"):
        trainer(sequence, **{option: "some"})


@pytest.mark.parametrize("inference", ["entropy", "agreement"])
def test_a_told_task_is_counted_in_the_same_pass(inference: str, sequence: TaskSequence) -> None:
    """What counts where the task is told is what the task scenario gives."""
    model = trainer(sequence).model
    for scenario in ("domain", "class"):
        found = accuracies(model, sequence, Protocol(scenario, inference))
        told = accuracies(model, sequence, Protocol())
        assert torch.equal(found.aware, told.right)
        assert torch.equal(told.aware, told.right)
        assert (told.known == 1).all()
    few = accuracies(model, sequence, Protocol("domain", inference), seen=2)
    assert few.aware.isnan().tolist() == [False, False, True, True]


def test_task_by_task_or_in_one_pass(sequence: TaskSequence) -> None:
    """On a CPU the candidates' logits are computed one after the other: the same as by vmap."""
    model = trainer(sequence).model.eval()
    x = sequence[1].preprocess(sequence[1].test.images[:20])
    among = candidates(model, "confidence", 3)
    chosen, logits = compare_tasks(model, x, among)
    expected = model.some_tasks(x, among.tasks, among.params)
    torch.testing.assert_close(logits, expected)
    assert torch.equal(chosen, expected.log_softmax(-1).amax(-1).argmax(0))


@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (2, 3, 7, 5), (1, 1, 2, 3), (3, 5, 4)])
def test_pooling_without_gradients_is_torchs(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).round(decimals=1)
    x.view(-1)[3] = math.nan
    pool, expected = MaxPool(), nn.MaxPool2d(2)(x)
    with torch.no_grad():
        torch.testing.assert_close(pool(x), expected, rtol=0, atol=0, equal_nan=True)
        assert pool(x).shape == expected.shape
    torch.testing.assert_close(pool(x), expected, rtol=0, atol=0, equal_nan=True)


def test_empty_cells_are_read_as_they_were_written(tmp_path: Path) -> None:
    directory, matrix = RunDirectory(tmp_path), torch.tensor([[0.5, math.nan], [math.nan, 1 / 3]], dtype=torch.float64)
    directory.write_accuracy(matrix, torch.full((2,), math.nan))
    assert directory.accuracy.read_text().splitlines() == ["trained,task_0,task_1", "init,,", "0,0.5,", f"1,,{1 / 3}"]
    torch.testing.assert_close(Tensor(directory.read_accuracy()[1:]).double(), matrix, equal_nan=True)


@pytest.mark.slow
def test_a_thinned_run_from_the_command_line(tiny: list[str], tmp_path: Path) -> None:
    """Figures, TensorBoard, tables and a reload live with what was not measured; the accuracies at the end are the same."""
    scripts, runs = CONF.parent / "scripts", []
    for name, options in (("whole", []), ("thin", ["trainer.evaluate=last", "trainer.statistics=none"])):
        runs.append(tmp_path / name)
        command = [sys.executable, str(scripts / "train.py"), *tiny, *options, f"run.dir={runs[-1]}"]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
    whole, thin = ([line.split(",") for line in (run / "accuracy.csv").read_text().splitlines()] for run in runs)
    assert thin[-1] == whole[-1]
    assert thin[1] == ["init", "", "", ""]
    assert [[k for k, cell in enumerate(row[1:]) if cell] for row in thin[2:]] == [[0], [1], [0, 1, 2]]
    metrics = json.loads((runs[1] / "metrics.json").read_text())
    assert metrics["forgetting"] is metrics["fwt"] is None
    assert 0 < metrics["seconds"] < metrics["seconds_total"]
    command = [sys.executable, str(scripts / "evaluate.py"), f"run={runs[1]}"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "not the recorded numbers" not in process.stdout


@pytest.mark.slow
def test_a_run_with_thinned_evaluation_resumes_to_the_same_numbers(
    tiny: list[str], compose: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thin = [*tiny, "trainer.evaluate=last", "trainer.statistics=last", "scenario=class"]
    whole, whole_task = train(compose(*thin, f"run.dir={tmp_path / 'whole'}")), Trainer._run_task

    def dies_in_the_last_task(self: Trainer, task: int) -> None:
        if task == 2:
            raise KeyboardInterrupt
        whole_task(self, task)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_run_task", dies_in_the_last_task)
        with pytest.raises(KeyboardInterrupt):
            train(compose(*thin, f"run.dir={tmp_path / 'died'}"))
    died = train(compose(*thin, f"run.dir={tmp_path / 'died'}", "resume=true"))
    models = [load_file(run / "model.safetensors") for run in (whole, died)]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    for name in ("accuracy.csv", "statistics.json"):
        assert (whole / name).read_bytes() == (died / name).read_bytes()
    first, second = (json.loads((run / "metrics.json").read_text()) for run in (whole, died))
    timed = {"seconds", "seconds_total", "steps_per_second"}
    assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}
