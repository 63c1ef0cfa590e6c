"""Directories that somebody else has made: they run, read and write nothing outside of themselves."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import hnetcl
from faults.processes import Jobs
from hnetcl.cli.jobs import train
from hnetcl.cli.plain import saved_values
from hnetcl.config import Config
from hnetcl.errors import ArgumentError
from hnetcl.training import RunDirectory

SMALL = ["trainer.steps=4", "observers=[tensorboard]", "trainer.threads=1"]
BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 8)}]\n" for i in range(20)
)


WRITTEN = ["train.log", "checkpoints", "tensorboard", "environment.json", "figures", ".lock", "accuracy.csv"]
STRUCTURES = ["[]", "null", "3", '"x"', "{}", "[[1], 2]", "NaN", "[" * 100_000, "a,b\n1,2,3\n", "\x00"]
STRUCTURES += ['{"tasks": [1]}', '{"tasks": {}}']
Compose = Callable[..., Config]


class Bad:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data_root: Path, jobs: Jobs) -> Path:
    """A finished run, to be copied."""
    run = tmp_path_factory.mktemp("received") / "run"
    words = [f"data.root={data_root}", "task.dataset=tiny", "task.num_tasks=3", "task.val_size=20", "net.hidden=[16]"]
    code, output = jobs.run("train", *words, *SMALL, "hnet.hidden=[16]", f"run.dir={run}")
    assert code == 0, output
    return run


@pytest.fixture
def received(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def goes_on(data_root: Path, received: Path) -> list[str]:
    """Words that go on with the run."""
    words = [f"data.root={data_root}", "task.dataset=tiny", "task.num_tasks=3", "task.val_size=20", "net.hidden=[16]"]
    return ["train", *words, *SMALL, "hnet.hidden=[16]", f"run.dir={received}", "resume=true"]


def resealed(run: Path) -> None:
    """As an attacker would leave it: with the right checksums."""
    RunDirectory(run).save_model(load_file(run / "model.safetensors"))


def unfinished(run: Path) -> None:
    for name in ("model.safetensors", "metrics.json"):
        (run / name).unlink()


def refused(jobs: Jobs, words: list[str], *texts: str) -> None:
    """In one line that says each of these; without torch's advice to switch its checks off."""
    code, output = jobs.run(*words)
    assert code == 2, output
    lines = [line for line in output.splitlines() if " tasks, on cpu: " not in line]  # what the run is
    assert len(lines) == 1, output
    assert all(text in output for text in texts), output
    assert "weights_only" not in output


def test_pickles_are_not_read(received: Path, goes_on: list[str], jobs: Jobs, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for path in (received / "model.safetensors", received / "checkpoints" / "last.safetensors"):
        path.write_bytes(pickle.dumps(Bad(trace)))
    torch.save({"x": Bad(trace)}, received / "checkpoints" / "previous.safetensors")
    refused(jobs, ["evaluate", f"run={received}"], "model.safetensors is damaged, or was not written by hnetcl")
    unfinished(received)
    refused(jobs, goes_on, "last.safetensors is damaged", "previous.safetensors is damaged", "remove the folder checkpoints")
    assert not trace.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("hydra: {sweeper: {_target_: os.system}}\n", "hydra"),
        ("_target_: os.system\n", "_target_"),
        ("x: !!python/object/apply:os.system [touch trace]\n", "tag"),
        (BOMB, "anchor or alias"),
        ("x: " + "[" * 10_000 + "]" * 10_000 + "\n", "nested deeper"),
        ("x: " + "a" * 2**21 + "\n", "bytes, more than"),
    ],
)
def test_configurations_are_values_only(change: str, text: str, received: Path, jobs: Jobs, tmp_path: Path) -> None:
    """On evaluating, loading, and on training once more by `-cp`."""
    config = received / "config.yaml"
    config.write_text(config.read_text() + change)
    resealed(received)
    refused(jobs, ["evaluate", f"run={received}"], "config.yaml", text)
    with pytest.raises(ArgumentError, match=r"config\.yaml"):
        hnetcl.load(received)
    code, output = jobs.run("train", "-cp", str(received), "-cn", "config", f"run.dir={tmp_path / 'again'}", cwd=tmp_path)
    assert (code, output.count("\n")) == (2, 1), output
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_references_are_text(received: Path, goes_on: list[str], jobs: Jobs, tmp_path: Path) -> None:
    text = (received / "config.yaml").read_text()
    assert saved_values("a: ${oc.env:HOME}\nb: [x, '${b}']") == {"a": "${oc.env:HOME}", "b": ["x", "${b}"]}
    for key, refusal in (("seed", "seed=${oc.env:HOME}"), ("device", None)):
        values = OmegaConf.merge(OmegaConf.create(text), OmegaConf.create({key: "${oc.env:HOME}"}))
        (received / "config.yaml").write_text(OmegaConf.to_yaml(values))
        resealed(received)
        if refusal:
            refused(jobs, ["evaluate", f"run={received}"], refusal)
        else:
            assert jobs.run("evaluate", f"run={received}")[0] == 0
        refused(jobs, ["train", "-cp", str(received), f"run.dir={tmp_path / 'again'}"], "a reference, ${oc.env:HOME}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.yaml", "tasks.json", "accuracy.csv", "model.safetensors"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_links_and_pipes_are_not_followed(kind: str, name: str, received: Path, jobs: Jobs, tmp_path: Path) -> None:
    path = received / name
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    {"link": lambda: path.symlink_to(elsewhere), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    refused(jobs, ["evaluate", f"run={received}"], "" if kind == "link" and name == "config.yaml" else "run=")
    if name == "config.yaml":
        refused(jobs, ["train", "-cp", str(received), "-cn", "config", f"run.dir={tmp_path / 'again'}"], "config-path=")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["train.log", "checkpoints", "tensorboard", "environment.json", "figures", ".lock", "accuracy.csv"]
)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_nothing_is_written_elsewhere(
    kind: str, name: str, received: Path, goes_on: list[str], jobs: Jobs, tmp_path: Path
) -> None:
    unfinished(received)
    path, elsewhere = received / name, tmp_path / "elsewhere"
    if path.is_dir():
        path.rename(elsewhere)
    else:
        path.unlink(missing_ok=True)
        elsewhere.write_text("mine")
    if kind == "link":
        path.symlink_to(elsewhere)
    else:
        os.mkfifo(path)
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file() and received not in each.parents}
    refused(jobs, goes_on, f"run.dir={received}: ")
    after = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file() and received not in each.parents}
    assert before == after


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tasks.json", "accuracy.csv", "metrics.json", "environment.json"])
@pytest.mark.parametrize("content", STRUCTURES)
def test_any_structure_gets_a_line(
    content: str, name: str, received: Path, compose: Compose, goes_on: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether a file is read by evaluation, by loading or by a run that goes on; of what is not read, none."""
    (received / name).write_text(content)
    resealed(received)
    line = attempt(lambda: train(compose(*goes_on[1:])))
    if line is None:
        assert name == "environment.json" or f"{name} is damaged" in capsys.readouterr().out
    else:
        assert name in line
    unfinished(received)
    line = attempt(lambda: train(compose(*goes_on[1:])))
    assert (line is not None and name in line) == (name == "tasks.json" or (name == "environment.json" and content != "[]"))


def attempt(job: Callable[[], object]) -> str | None:
    """What a job says where it refuses its work."""
    try:
        job()
    except ArgumentError as error:
        return str(error) if "\n" not in str(error) else None
    return None


def test_tensors_that_no_training_leaves(received: Path, jobs: Jobs) -> None:
    tensors = load_file(received / "model.safetensors")
    directory = RunDirectory(received)
    name = next(name for name in tensors if name.endswith(("running_var", "running_cov")))
    for changed, text in (
        ({"hnet.embedding": tensors["hnet.embedding"] * torch.nan}, "hnet.embedding is not finite"),
        ({name: -tensors[name]}, "are not positive"),
        ({name: tensors[name] * torch.inf}, "is not finite"),
    ):
        directory.save_model(tensors | changed)
        refused(jobs, ["evaluate", f"run={received}"], "model.safetensors is damaged", text)
    save_file(tensors, received / "model.safetensors")  # whole, but not by hnetcl
    refused(jobs, ["evaluate", f"run={received}"], "was not written by hnetcl")


def test_tensors_without_a_configuration(received: Path, goes_on: list[str], jobs: Jobs) -> None:
    (received / "config.yaml").unlink()
    refused(jobs, goes_on, "no config.yaml")
    refused(jobs, ["evaluate", f"run={received}"], "holds no run")


def test_a_checkpoint_of_another_training(received: Path, goes_on: list[str], compose: Callable[..., Config]) -> None:
    """With the right checksums."""
    unfinished(received)
    directory = RunDirectory(received)
    state = directory.load_checkpoint()
    assert state is not None
    others: list[Any] = [None, [], {"a": 1}, torch.zeros(3), "x"]
    changes: list[dict[str, Any]] = [{key: other} for key in state for other in others]
    for change in [dict.fromkeys(state), *changes]:
        directory.save_checkpoint(state | change)
        directory.save_checkpoint(state | change)
        assert attempt(lambda: train(compose(*goes_on[1:]))), change
