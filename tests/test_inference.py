"""Finding the task of a sample."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hnetcl import wrap
from hnetcl.bn import BatchNormLayer
from hnetcl.cli.jobs import evaluate, train
from hnetcl.config import Config, parse_evaluation
from hnetcl.errors import ArgumentError
from hnetcl.hnets import DirectHyperNetwork
from hnetcl.inference import agreement, candidates, confidence, entropy, infer_tasks, learns
from hnetcl.model import HyperModel
from hnetcl.registry import names
from hnetcl.training import Protocol


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(tasks: int = 4) -> HyperModel:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model = wrap(net, tasks, hnet="full", hidden=[5])
    for task in range(tasks):
        model(torch.randn(20, 6) + task, task)
    return model.eval()


def test_scores_are_those_of_torchs_distributions() -> None:
    logits = 3 * torch.randn(4, 5, 3, dtype=torch.float64)
    predicted = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(entropy(logits), -predicted.entropy())
    torch.testing.assert_close(confidence(logits), predicted.probs.amax(-1).log())
    copies = 3 * torch.randn(7, 4, 5, 3, dtype=torch.float64)
    each = torch.distributions.Categorical(logits=copies)
    together = torch.distributions.Categorical(probs=each.probs.mean(0))
    torch.testing.assert_close(agreement(copies), each.entropy().mean(0) - together.entropy())


@pytest.mark.parametrize("score", [entropy, confidence, lambda logits: agreement(torch.stack([logits, -logits]))])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4, 1e30])
def test_scores_are_always_numbers(score: Callable[[Tensor], Tensor], scale: float) -> None:
    """Whatever finite logits there are; a surer prediction never scores less."""
    values = score(scale * torch.randn(4, 5, 3))
    assert values.isfinite().all()
    assert (values <= 1e-9).all()


@pytest.mark.parametrize("criterion", [name for name in names("inference") if not learns(name)])
def test_each_sample_is_judged_for_itself(criterion: str) -> None:
    """Samples of all tasks may stand in one batch; the logits are those of the inferred task, and the same at every call."""
    model, x = build(), 5 * torch.randn(40, 6)
    among = candidates(model, criterion)
    tasks, logits = infer_tasks(model, x, among)
    assert len(tasks.unique()) > 1
    for sample, task, expected in zip(x.split(1), tasks.tolist(), logits, strict=True):
        alone, _ = infer_tasks(model, sample, among)
        assert alone.tolist() == [task]
        torch.testing.assert_close(model(sample, task)[0], expected)
    again, _ = infer_tasks(model, x, candidates(model, criterion))
    assert torch.equal(again, tasks)
    few, _ = infer_tasks(model, x, candidates(model, criterion, seen=2))
    assert few.max() <= 1


def test_refused() -> None:
    """An unknown criterion, noise where there are no embeddings, and models in training are errors."""
    model, x = build(), torch.randn(3, 6)
    with pytest.raises(ArgumentError, match="inference=luck: allowed: agreement, confidence, entropy"):
        candidates(model, "luck")
    with pytest.raises(ArgumentError, match="scenario=all: allowed: class, domain, task"):
        Protocol("all")
    with pytest.raises(ValueError, match="for evaluation"):
        infer_tasks(model.train(), x, candidates(model, "entropy"))
    direct = wrap(nn.Sequential(nn.Linear(6, 3), BatchNormLayer(3)), 2, hnet=DirectHyperNetwork, per_task=["*"]).eval()
    infer_tasks(direct, x, candidates(direct, "entropy"))
    with pytest.raises(ArgumentError, match="DirectHyperNetwork has no task embeddings"):
        candidates(direct, "agreement")


@pytest.mark.parametrize(("scenario", "inference"), [("class", "entropy"), ("domain", "confidence"), ("class", "agreement")])
def test_a_run_that_is_not_told_the_task(
    scenario: str, inference: str, tiny: list[str], compose: Callable[..., Config], tmp_path: Path
) -> None:
    """R, metrics and a reload follow the scenario; in the class scenario nothing is right where the task is not."""
    run = train(compose(*tiny, f"scenario={scenario}", f"inference={inference}", "trainer.steps=60", f"run.dir={tmp_path}"))
    metrics = json.loads((run / "metrics.json").read_text())
    rows = [[float(v or "nan") for v in line.split(",")[1:]] for line in (run / "accuracy.csv").read_text().splitlines()[1:]]
    values: dict[str, Any] = {
        "run": str(run),
        "task": None,
        "stats": "own",
        "device": "auto",
        "imports": [],
        "data": {"root": None},
    }
    own = {"scenario": None, "inference": None}
    assert evaluate(parse_evaluation(values | own)) == rows[-1]
    told = evaluate(parse_evaluation(values | own | {"scenario": "task"}))
    assert metrics["task_aware"] == pytest.approx(sum(told) / 3)
    assert metrics["task_agnostic"] == metrics["average_accuracy"] <= metrics["task_aware"]
    assert 0 <= metrics["task_inference_accuracy"] <= 1
    if scenario == "class":
        assert metrics["task_agnostic"] <= metrics["task_inference_accuracy"]
        assert rows[1][1] == 0  # after task 0, no other task comes into question
    assert math.isnan(rows[1][2])  # no metric reads it
    with pytest.raises(ArgumentError, match="each task uses its own; allowed: own, recalibrated"):
        evaluate(parse_evaluation(values | own | {"stats": "0"}))
