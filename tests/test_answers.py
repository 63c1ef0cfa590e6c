"""What a model says of each test image at the end: metrics of logits, accuracy of every class, and costs, in a run's files."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import peer
from torch import Tensor

from hnetcl import metrics, register
from hnetcl.cli import jobs
from hnetcl.cli.jobs import evaluate, train
from hnetcl.config import Config, parse_evaluation
from hnetcl.errors import ArgumentError
from hnetcl.methods import Method
from hnetcl.registry import find, make
from hnetcl.tasks import TaskSequence, load_images, split_sequence
from hnetcl.training import ClassAccuracy, Result, RunDirectory, Trainer, class_accuracies, read_classes, write_classes
from hnetcl.training import answers as answers_module
from hnetcl.training.optimizers import adam
from hnetcl.wrapping import wrap

Compose = Callable[..., Config]
TIMES = {"seconds", "seconds_total", "steps_per_second"}
COUNTS = [2, 3]


def drawn(tasks: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and labels of tasks that differ in their numbers of images and classes."""
    generator = torch.Generator().manual_seed(tasks)
    sizes = [(50 + 10 * task, 2 + task) for task in range(tasks)]
    return (
        [2 * torch.randn(images, classes, generator=generator) for images, classes in sizes],
        [torch.randint(classes, (images,), generator=generator) for images, classes in sizes],
    )


@pytest.mark.parametrize("tasks", [1, 3])
def test_the_formulas_image_by_image(tasks: int) -> None:
    errors, losses = [], []
    for own, labels in zip(*drawn(tasks), strict=True):
        bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
        loss = 0.0
        for row, label in zip(own.double().exp(), labels.tolist(), strict=True):
            shares = (row / row.sum()).tolist()
            place = next(m for m in range(15) if m / 15 < max(shares) <= (m + 1) / 15)
            bins[place].append((max(shares), shares.index(max(shares)) == label))
            loss -= float((row / row.sum())[label].log())
        gaps = [abs(sum(right for _, right in each) - sum(sure for sure, _ in each)) for each in bins]
        errors.append(sum(gaps) / len(labels))
        losses.append(loss / len(labels))
    assert metrics.calibration_error(*drawn(tasks)) == pytest.approx(sum(errors) / tasks)
    assert metrics.negative_log_likelihood(*drawn(tasks)) == pytest.approx(sum(losses) / tasks)


def test_calibration_is_torchmetrics() -> None:
    theirs = peer("torchmetrics.functional.classification")
    found = []
    for own, labels in zip(*drawn(), strict=True):
        found.append(theirs.multiclass_calibration_error(own.softmax(1), labels, own.shape[1], n_bins=15, norm="l1"))
    assert metrics.calibration_error(*drawn()) == pytest.approx(float(sum(found)) / len(found), abs=1e-6)


def test_large_logits_are_sure_and_nothing_worse() -> None:
    logits = [torch.tensor([[1e4, 0.0], [0.0, 1e4]])]
    assert metrics.calibration_error(logits, [torch.tensor([0, 1])]) == 0
    assert metrics.calibration_error(logits, [torch.tensor([0, 0])]) == 0.5
    assert metrics.negative_log_likelihood(logits, [torch.tensor([0, 0])]) == 5e3


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_logits_that_are_not_finite_are_no_fault(value: float) -> None:
    logits, labels = [torch.tensor([[value, 0.0], [1.0, 0.0]])], [torch.tensor([0, 0])]
    assert math.isnan(metrics.calibration_error(logits, labels))
    assert math.isnan(metrics.negative_log_likelihood(logits, labels))


def uneven(data_root: Path, head: Any) -> TaskSequence:
    made = split_sequence(lambda _: load_images("tiny", data_root), num_tasks=len(COUNTS), classes_per_task=COUNTS, val_size=0)
    return replace(made, head=head)


def trainer(sequence: TaskSequence, hnet: str, scenario: str, **how: Any) -> Trainer:
    torch.manual_seed(0)
    net = make("net", {"name": "mlp", "hidden": [8]}, in_shape=sequence.in_shape, num_outputs=sequence.num_outputs, norm=None)
    options: dict[str, Any] = (
        {"num_outputs": sequence.num_outputs, "head": sequence.head} if hnet == "direct" else {"hidden": [8]}
    )
    model, generator = wrap(net, len(sequence), hnet=hnet, **options), torch.Generator().manual_seed(0)
    return Trainer(model, sequence, Method(), adam(lr=0.01), generator, scenario, steps=8, batch_size=16, **how)


@pytest.mark.parametrize("evaluate", ["seen", "last"])
@pytest.mark.parametrize(
    ("hnet", "scenario", "head"),
    [
        ("full", "task", "task"),
        ("full", "class", "task"),
        ("full", "class", "all"),
        ("direct", "domain", "shared"),
        ("direct", "class", "all"),
        ("direct", "task", "all"),
    ],
)
def test_predictions_are_those_that_r_counts(
    hnet: str, scenario: str, head: str, evaluate: str, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept from the last evaluation, or found anew: the same; logits of a task's own classes alone, but with a shared head."""
    sequence = uneven(data_root, head)
    training = trainer(sequence, hnet, scenario, evaluate=evaluate, eval_batch_size=32)
    with monkeypatch.context() as patch:
        patch.setattr(answers_module, "accuracies", None)  # no image is looked at twice
        result = training.fit()
    logits, labels, right = result.predictions
    told = [(own.argmax(1) == known).double().mean() for own, known in zip(logits, labels, strict=True)]
    torch.testing.assert_close(torch.stack([each.double().mean() for each in right]), result.matrix[-1], rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.stack(told), result.aware, rtol=0, atol=1e-12)
    assert [own.shape[1] for own in logits] == (COUNTS if head != "shared" else [max(COUNTS)] * 2)
    assert all(torch.equal(known, task.test.labels) for known, task in zip(labels, sequence.tasks, strict=True))
    training.answers.kept = {}
    for one, other in zip(result.predictions, training.answers.predictions(range(2)), strict=True):
        assert all(torch.equal(own, again) for own, again in zip(one, other, strict=True))

    found = class_accuracies(sequence, result.predictions)
    assert [(each.task, each.name) for each in found] == [
        (t, name) for t, task in enumerate(sequence.tasks) for name in task.classes
    ]
    for task in range(2):
        own_classes = [each for each in found if each.task == task]
        images = sum(each.images for each in own_classes)
        assert images == len(labels[task])
        assert sum(each.images * each.accuracy for each in own_classes) == pytest.approx(
            images * float(result.matrix[-1, task])
        )
        assert sum(each.images * each.task_aware for each in own_classes) == pytest.approx(images * float(result.aware[task]))


def test_classes_are_avalanches(data_root: Path) -> None:
    theirs = peer("avalanche.evaluation.metrics").ClassAccuracy()
    sequence = uneven(data_root, "task")
    predictions = trainer(sequence, "full", "task").fit().predictions
    for task, (logits, labels) in enumerate(zip(predictions.logits, predictions.labels, strict=True)):
        theirs.update(logits, labels, task)
    expected = [value for of_task in theirs.result().values() for value in of_task.values()]
    assert [each.task_aware for each in class_accuracies(sequence, predictions)] == pytest.approx(expected)


def test_an_evaluation_that_was_broken_off_leaves_nothing(data_root: Path) -> None:
    training = trainer(uneven(data_root, "task"), "full", "task")
    result: Result = training.fit()
    see = training.answers.begin()
    see(0, torch.zeros(3, 2), torch.zeros(3).long(), torch.zeros(3).bool())
    again = training.answers.predictions(range(2))
    assert all(torch.equal(one, other) for one, other in zip(result.predictions.logits, again.logits, strict=True))


def test_names_of_classes_are_any_text(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert read_classes(directory) == []  # earlier versions wrote none
    classes = [ClassAccuracy(0, 'a, "b"', 3, 1 / 3, 2 / 3), ClassAccuracy(1, "naïve\tcafé", 7, 0.0, 1.0)]
    write_classes(directory, classes)
    assert read_classes(directory) == classes
    text = directory.classes.read_text()
    for damaged in ("", text[:-8], text.replace("task,", "tusk,"), text.replace("0.0,", "7.0,"), text + "x"):
        directory.classes.write_text(damaged)
        with pytest.raises(ValueError, match=r"^classes.csv is damaged \("):
            read_classes(directory)


@pytest.fixture(scope="module")
def small(small_job: list[str]) -> list[str]:
    return [*(word for word in small_job if not word.startswith("hnet.")), "trainer.steps=4", "observers=[]"]


def read(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


def test_a_run_that_ends_before_its_metrics_has_the_same(
    small: list[str], compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after the last task, its predictions are found anew; so are they where classes.csv is damaged."""
    words = [*small, "method=replay", "method.size=30", "scenario=class", "bn=real"]
    whole = train(compose(*words, f"run.dir={tmp_path / 'whole'}"))

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_metrics", dies)
        with pytest.raises(KeyboardInterrupt):
            train(compose(*words, f"run.dir={tmp_path / 'died'}"))
    died = train(compose(*words, f"run.dir={tmp_path / 'died'}", "resume=true"))
    expected = {key: value for key, value in read(whole).items() if key not in TIMES}
    assert (expected["steps"], expected["stored_images"]) == (12, 30)
    assert type(expected["parameters"]) is int
    classes = (whole / "classes.csv").read_bytes()
    for content in (None, b"task,class\n"):
        assert {key: value for key, value in read(died).items() if key not in TIMES} == expected
        assert (died / "classes.csv").read_bytes() == classes
        (died / "classes.csv").unlink()
        if content is not None:
            (died / "classes.csv").write_bytes(content)
        with pytest.raises(ArgumentError, match=r"classes.csv is"):
            evaluate(parse_evaluation(asked(died)))
        train(compose(*words, f"run.dir={died}", "resume=true"))
        assert "classes.csv is" in capsys.readouterr().out
    train(compose(*words, f"run.dir={whole}", "resume=true"))
    printed = capsys.readouterr().out.splitlines()
    assert "steps: 12" in printed
    assert f"calibration_error: {expected['calibration_error']:.6f}" in printed


def asked(run: Path) -> dict[str, Any]:
    own = {"task": None, "stats": "own", "scenario": None, "inference": None}
    return {"run": str(run), **own, "imports": [], "device": "cpu", "data": {"root": None}}


def test_classes_of_a_run_that_finds_the_task(small: list[str], compose: Compose, tmp_path: Path) -> None:
    run = train(compose(*small, "scenario=class", "method.beta=0.1", "bn=real", f"run.dir={tmp_path / 'run'}"))
    with (run / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["class"], row["images"]) for row in rows] == [(str(k // 2), str(k), "20") for k in range(6)]
    for column, name in (("accuracy", "average_accuracy"), ("task_aware", "task_aware")):
        assert sum(float(row[column]) for row in rows) / 6 == pytest.approx(read(run)[name])  # as many of each class
    assert all(float(row["accuracy"]) <= float(row["task_aware"]) for row in rows)


@pytest.mark.parametrize(
    ("words", "stored", "parameters"),
    [
        (["method=joint"], 300, "network and heads"),
        (["method=finetune", "generate=norm", "shared=trained_once", "hnet=full"], 0, "all but what is written"),
        (["method=finetune", "generate=norm", "shared=fixed", "hnet=full"], 0, "hypernetwork"),
    ],
)
def test_costs_are_counts(
    words: list[str], stored: int, parameters: str, small: list[str], compose: Compose, tmp_path: Path
) -> None:
    run = train(compose(*small, *words, "bn=real", "net.hidden=[4]", f"run.dir={tmp_path / 'run'}"))
    found, width, pixels, outputs = read(run), 4, 256, 2
    norm, body, head = 2 * width, pixels * width, (width + 1) * outputs  # no bias where norm follows
    hypernetwork = round(found["compression"] * norm)
    expected = {
        "network and heads": body + norm + 3 * head,
        "all but what is written": body + head + hypernetwork,
        "hypernetwork": hypernetwork,
    }
    assert found["parameters"] == expected[parameters]
    assert (found["stored_images"], found["steps"]) == (stored, 12)


def test_a_metric_of_ones_own_may_ask_for_logits(small: list[str], compose: Compose, tmp_path: Path, users_parts: None) -> None:
    @register("metric", "hardest_image")
    def hardest_image(R: Tensor, logits: list[Tensor], labels: list[Tensor]) -> float:
        assert len(R) == len(logits) == len(labels)
        return float(min(own.softmax(1)[range(len(known)), known].min() for own, known in zip(logits, labels, strict=True)))

    assert "hardest_image" not in metrics.summary(torch.eye(2), torch.zeros(2))
    words = [*small, "bn=real", "optimized_metric=hardest_image", "trainer.evaluate=last", f"run.dir={tmp_path / 'run'}"]
    assert 0 < read(train(compose(*words)))["hardest_image"] < 1

    @register("metric", "unmeasured")
    def unmeasured(R: Tensor, logits: list[Tensor]) -> float:
        return float(R[0, -1]) + len(logits)

    rule = r"optimized_metric=unmeasured: takes more than trainer.evaluate=last measures; allowed with it: .*calibration_error"
    with pytest.raises(ArgumentError, match=rule):
        train(compose(*words, "optimized_metric=unmeasured"))
    assert find("metric", "hardest_image") is hardest_image
