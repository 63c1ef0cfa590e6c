"""Benchmarks of hypernetworks: what is measured, and what comes out. No test asserts how long anything takes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import inference, peers, regularizer, strategies
from benchmarks.command import main
from benchmarks.contenders import Contender
from benchmarks.example import Example, batches
from benchmarks.speed import speed
from benchmarks.step import OurStep
from benchmarks.train import Training

from hnetcl.compiling import can_compile

CPU = torch.device("cpu")
TINY = Example((6, 5), (7, 6), 50, 4)
OURS = ["ours/all", "ours/all/compiled", "ours/1", "ours/1/compiled", "ours/numbers", "ours/none"]
SIZES = ["--hidden=6,5", "--trunk=7,6", "--chunk-size=50", "--embedding-dim=4", "--rounds=2", "--turn=1"]
pytestmark = [  # raised inside torch's compiler
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


def record(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """What a measurement writes."""
    path = tmp_path / "figures.json"
    main([*arguments, *SIZES, f"--json={path}"])
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_turn_is_some_steps_in_a_row() -> None:
    calls: list[str] = []
    contenders = [Contender(name, lambda name=name: lambda: calls.append(name), "a") for name in "ab"]  # type: ignore[misc]
    figures = speed(contenders, 4, 3, CPU).figures
    runs = ["".join(calls[k : k + 3]) for k in range(0, len(calls), 3)]
    assert set(runs) == {"aaa", "bbb"}
    assert [f["base"] for f in figures] == ["a", "a"]
    assert figures[0]["times"] == 1
    assert all(f["per_second"] == pytest.approx(1 / f["seconds"]) for f in figures)


@pytest.mark.slow
def test_training_is_measured_beside_hypnettorch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hypnettorch", reason="hypnettorch is not installed (it is in the extra `peers`)")
    found = record(tmp_path, "train", "--tasks=3", "--batch=4")
    names = [f["name"] for f in found["figures"]]
    assert names == ["hypnettorch", *(name for name in OURS if name in names), "hypnettorch/1"]
    assert set(OURS) - set(names) == {name for name in found["absent"] if name.endswith("compiled")}
    assert {f["base"] for f in found["figures"]} == {"hypnettorch"}
    assert all(math.isfinite(f[key]) and f[key] > 0 for f in found["figures"] for key in ("seconds", "per_second", "times"))
    assert found["figures"][0]["times"] == 1
    assert found["hidden"] == [6, 5]
    assert all(name in capsys.readouterr().out for name in names[:1])


@pytest.mark.slow
def test_all_trainings_go_the_same_way() -> None:
    """From copied weights, on the same batches: the losses of every step agree, by factors or by numbers."""
    pytest.importorskip("hypnettorch", reason="hypnettorch is not installed (it is in the extra `peers`)")
    training = Training(TINY, 3, 8, CPU)
    steps = [training.hypnettorch(), training.ours(), training.ours(by_numbers=True)]
    if can_compile(CPU):
        steps.append(training.ours(compile="on"))
    losses = torch.stack([torch.stack([step() for _ in range(5)]) for step in steps])  # type: ignore[misc]
    torch.testing.assert_close(losses[1:], losses[:1].expand(len(steps) - 1, -1), rtol=1e-3, atol=1e-4)
    assert float(losses[0].std()) > 0


def test_without_hypnettorch_ours_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda _: None)
    found = record(tmp_path, "train", "--tasks=3", "--batch=4", "--only", "*hypnettorch*", "*/all", "*/1", "*/n*")
    assert found["absent"] == {"hypnettorch": "not installed", "hypnettorch/1": "not installed"}
    assert [f["times"] for f in found["figures"]] == [1, 1, 1, 1]


def test_cost_over_tasks(tmp_path: Path) -> None:
    """Ratios are to the fewest tasks; the targets that a method keeps grow with the tasks, the older hypernetwork does not."""
    found = record(tmp_path, "regularizer", "--tasks=3,7", "--sample=2", "--batch=4")
    figures = {f["name"]: f for f in found["figures"]}
    assert list(figures) == [f"{t}/{s}/{n}" for t in regularizer.TARGETS for s in ("all", 2) for n in (3, 7)]
    for name, f in figures.items():
        base = figures[f["base"]]
        assert name.rpartition("/")[0] == f["base"].rpartition("/")[0]
        assert f["memory_ratio"] == pytest.approx((f["held"] + f["peak"]) / (base["held"] + base["peak"]))
        assert min(f["seconds"], f["penalty"], f["held"], f["peak"]) > 0
        assert (f["ratio"] == f["penalty_ratio"] == f["memory_ratio"] == 1) == name.endswith("3")
    held = {name: f["held"] for name, f in figures.items()}
    assert held["stored/2/7"] > held["stored/2/3"]
    grows = held["online/2/7"] - held["online/2/3"]  # four embeddings of 4 numbers, and the numbers of the tasks
    assert grows == 4 * 4 * 4 + 4 * 8


@pytest.mark.parametrize("targets", regularizer.TARGETS)
def test_held_bytes_are_those_of_targets_or_of_the_older_hypernetwork(targets: str) -> None:
    step = regularizer.training(TINY, 4, 2, targets, 8, CPU)
    assert isinstance(step, OurStep)
    hnet, method = step.model.hnet, regularizer.regularizer(step)
    tasks = 3 * 8
    if targets == "online":
        own = sum(t.nbytes for t in (*hnet.parameters(), *hnet.buffers()))
        assert regularizer.held_bytes(method) == own + tasks
    else:
        assert method.record is not None
        kept = [*method.record.by_task, *method.record.common]
        assert regularizer.held_bytes(method) == sum(t.nbytes for t in kept) + tasks


def test_inference_is_measured(tmp_path: Path) -> None:
    found = record(tmp_path, "inference", "--tasks=3", "--batches=1,4")
    names = [f["name"] for f in found["figures"]]
    assert names == [
        f"{k}/{n}/{w}/{p}" for k in ("plain", "norm") for n in (1, 4) for w in ("anew", "kept") for p in ("loop", "one")
    ]
    assert all(f["base"] == f["name"].rpartition("/")[0] + "/loop" for f in found["figures"])


def test_methods_are_measured_beside_a_plain_loop_and_avalanche(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where that is not installed, beside the loop; each method has its penalty, or samples of old tasks, in the step."""
    monkeypatch.setattr(strategies, "is_installed", lambda library: False)
    path = tmp_path / "figures.json"
    main(["strategies", "--hidden=6,5", "--batch=4", "--rounds=1", "--turn=1", "--only", "ours/*", f"--json={path}"])
    figures = {f["name"]: f["base"] for f in json.loads(path.read_text())["figures"]}
    assert figures == dict.fromkeys(["plain", "ours/finetune/plain", *(f"ours/{name}" for name in strategies.METHODS)], "plain")
    training = strategies.Training((6, 5), 4, "images", CPU)
    for name, part in (("ewc", "penalty"), ("si", "penalty"), ("replay", "replay"), ("lwf", "distillation")):
        step = training.ours(name)
        assert isinstance(step, OurStep)
        step()  # away from where the old tasks ended
        losses = step.step(step.run, step.method.inputs(step.run, step.batches.draw))
        assert losses.parts[part] > 0


@pytest.mark.parametrize("kind", ["plain", "norm"])
def test_all_ways_of_inference_agree(kind: str) -> None:
    found = [inference.step(TINY, 3, 4, kind, kept, in_one, CPU)() for kept in (True, False) for in_one in (True, False)]
    for logits in found:
        assert isinstance(logits, torch.Tensor)
        assert logits.shape == (3, 4, 10)
        torch.testing.assert_close(logits, found[0], rtol=1e-4, atol=1e-4)


def test_batches_are_the_same_at_every_call() -> None:
    for (x, y), (other, labels) in ((batches(4, CPU).draw(), batches(4, CPU).draw()),):
        assert torch.equal(x, other)
        assert torch.equal(y, labels)
        assert x.shape == (4, 1, 28, 28)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "--tasks=1"], "tasks=1: must be at least 2"),
        (["train", "--batch=0"], "batch=0: must be at least 1"),
        (["train", "--hidden=8,0"], "hidden=8,0: must be whole numbers of at least 1, as in 10,100"),
        (["train", "--turn=0"], "turn=0: must be at least 1"),
        (["train", "--only", "theirs"], "only=theirs: "),
        (["regularizer", "--tasks=1,10"], "tasks=1,10: must be whole numbers of at least 2"),
        (["regularizer", "--sample=0"], "sample=0: must be at least 1"),
        (["inference", "--batches=x"], "batches=x: must be whole numbers of at least 1"),
        (["inference", "--chunk-size=0"], "chunk_size=0: must be at least 1"),
    ],
)
def test_bad_input_is_told_in_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    out, err = capsys.readouterr()
    assert (raised.value.code, out) == (2, "")
    assert err.startswith(line)
    assert len(err.splitlines()) == 1
