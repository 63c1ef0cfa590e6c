"""What every optimizer, metric, task inference and observer must do. A new one is a row, and is then tested like all others."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hnetcl.build import build
from hnetcl.cli.jobs import train
from hnetcl.config import Config
from hnetcl.lookahead import Lookahead
from hnetcl.registry import find, given, make, names

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adagrad": {"lr_decay": 0.1},
    "adam": {},
    "adamw": {},
    "rmsprop": {"momentum": 0.5, "centered": True},
    "sgd": {"momentum": 0.9, "nesterov": True},
}
LOGITS = [torch.tensor([[0.0, 4.0], [4.0, 0.0]]).log1p(), torch.zeros(1, 4)]  # of two tasks: 5 to 1, twice; all alike
LABELS = [torch.tensor([1, 1]), torch.tensor([3])]
METRICS = {  # name -> its value for R = [[0.9, 0.2], [0.5, 0.8]] and b = [0.1, 0.1], and these logits and labels
    "average_accuracy": 0.65,
    "average_incremental_accuracy": 0.775,
    "bwt": -0.4,
    "calibration_error": (1 / 3 + 1 / 4) / 2,  # sure by 5 / 6, right by 1 / 2; sure by 1 / 4, never right
    "forgetting": 0.4,
    "fwt": 0.1,
    "learning_accuracy": 0.85,
    "negative_log_likelihood": (math.log(36 / 5) / 2 + math.log(4)) / 2,
}
INFERENCES = ["agreement", "confidence", "entropy"]
RECOGNIZERS = ["statistics"]  # which learn when tasks end: tests/test_recognition.py
OBSERVERS = ["figures", "progress", "tensorboard"]


@pytest.mark.parametrize(
    ("kind", "table"),
    [("optimizer", OPTIMIZERS), ("metric", METRICS), ("inference", [*INFERENCES, *RECOGNIZERS]), ("observer", OBSERVERS)],
)
def test_every_part_is_in_its_table(kind: str, table: Any) -> None:
    assert set(table) == {n for n in names(kind) if find(kind, n).__module__.startswith("hnetcl.")}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "step"])
def test_an_optimizer_warms_up(name: str, schedule: str, compose: Callable[..., Config], tiny: list[str]) -> None:
    """In half of eight steps the rate rises by a fifth of what the schedule says, from then on it is that."""
    parts = build(compose(*tiny), torch.device("cpu"))
    rates: list[list[float]] = []
    for warmup in (0.5, 0.0):
        factory = make("optimizer", {"name": name, "lr": 0.001, "schedule": schedule, "warmup": warmup, **OPTIMIZERS[name]})
        optimizer, steps = factory.make(parts.model, 8)
        rates.append([])
        for _ in range(8):
            rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            steps.step()
    assert rates[0] == pytest.approx([rate * min(1, (k + 1) / 5) for k, rate in enumerate(rates[1])])


@pytest.mark.parametrize(
    ("words", "share"),
    [
        (["net.norm=none"], 0.1),
        ([], 0.0),
        (["net.norm=none", "hnet=direct"], 0.0),
        (["net.norm=none", "optimizer.warmup=0.5"], 0.5),
    ],
)
def test_without_batch_norm_a_hypernetwork_warms_up(
    words: list[str], share: float, tiny: list[str], compose: Callable[..., Config]
) -> None:
    small = [word for word in tiny if not (word.startswith("hnet.") and "hnet=direct" in words)]
    parts = build(compose(*small, "bn=real", *words), torch.device("cpu"))
    optimizer, _ = parts.optimizer.make(parts.model, 100)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(parts.optimizer.lr / (100 * share + 1))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_decays_what_tasks_share_alone(name: str, compose: Callable[..., Config], tiny: list[str]) -> None:
    """Without gradients: a task's own entries stand still. The schedule begins at the learning rate, and ends at zero."""
    parts = build(compose(*tiny, "bn.stats=learnable", "bn=real"), torch.device("cpu"))
    factory = make("optimizer", {"name": name, "lr": 0.001, "weight_decay": 0.5, "statistics_lr": 3.0, **OPTIMIZERS[name]})
    optimizer, schedule = factory.make(parts.model, 4)
    own = [p.detach().clone() for p in parts.model.hnet.task_parameters()]
    shared = [p.detach().clone() for p in parts.model.common_parameters().values()]
    rates = []
    for p in parts.model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(4):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert all(torch.equal(p, old) for p, old in zip(parts.model.hnet.task_parameters(), own, strict=True))
    after = parts.model.common_parameters().values()
    assert all(float(p.detach().norm()) < float(old.norm()) for p, old in zip(after, shared, strict=True) if old.any())
    assert rates[0] == pytest.approx([0.001, 0.001, 0.003])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0, 0.0, 0.0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_can_look_ahead(name: str) -> None:
    parameter = nn.Parameter(torch.randn(5))
    factory = make("optimizer", {"name": name, **OPTIMIZERS[name]})
    optimizer = factory.kind([parameter], lr=0.1, **factory.options)
    for _ in range(3):
        parameter.grad = torch.randn(5)
        expected = Lookahead(optimizer).next_values({parameter: parameter.grad})[parameter].clone()
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_reads_nothing_that_is_not_measured(name: str) -> None:
    R, b = torch.tensor([[0.9, 0.2], [0.5, 0.8]]), torch.tensor([0.1, 0.1])
    said: dict[str, Any] = {"logits": LOGITS, "labels": LABELS}
    assert make("metric", {"name": name}, R=R, b=b, **said) == pytest.approx(METRICS[name])
    assert math.isfinite(make("metric", {"name": name}, R=torch.ones(1, 1), b=torch.zeros(1), **said))
    far = torch.rand(4, 4).masked_fill(torch.ones(4, 4).triu(2).bool(), torch.nan)
    first = torch.rand(4)
    first[0] = torch.nan
    assert math.isfinite(make("metric", {"name": name}, R=far, b=first, **said))


@pytest.mark.parametrize("name", INFERENCES)
def test_a_task_inference_prefers_the_surer_task(name: str) -> None:
    """Finite for any finite logits, whatever is added to all of a sample's."""
    unsure, sure = torch.tensor([0.1, 0.0, 0.2]), torch.tensor([30.0, 0.0, -1e4])
    logits = torch.stack([unsure, sure]).unsqueeze(1)  # [T, N, K]
    noisy = torch.stack([logits, logits + torch.tensor([0.0, 0.3, -0.3])])
    for shift in (0.0, 1e6):
        taken = {"logits": logits + shift, "noisy": noisy + shift}
        score = make("inference", {"name": name}, **taken)
        assert score.shape == (2, 1)
        assert score.isfinite().all()
        assert score.argmax(0).item() == 1
    assert set(given("inference", name)) <= taken.keys()


@pytest.mark.parametrize("name", OBSERVERS)
def test_an_observer_follows_a_run_alone(name: str, compose: Callable[..., Config], tiny: list[str], tmp_path: Path) -> None:
    """From the start to the end; and it follows a run that goes on after it has ended."""
    words = [*tiny, "trainer.steps=3", f"run.dir={tmp_path / 'run'}", f"observers=[{name}]"]
    train(compose(*words))
    before = {path for path in (tmp_path / "run").rglob("*") if path.is_file()}
    train(compose(*words, "resume=true"))
    assert before <= set((tmp_path / "run").rglob("*"))
    assert (tmp_path / "run" / "metrics.json") in before
