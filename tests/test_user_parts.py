"""A part of every kind from a user's file in another folder, by the command line: the examples of the package's own pages."""

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from omegaconf import OmegaConf

from hnetcl import metrics
from hnetcl.cli.main import CONF
from hnetcl.inference import scores
from hnetcl.methods import Method
from hnetcl.registry import names
from hnetcl.training import Observer, OptimizerFactory

ROOT = CONF.parent
HEAD = """
from typing import Annotated

import hnetcl
import torch
from annotated_types import Ge
from hnetcl.hnets.generators.full import full
from hnetcl.methods import Inputs, Losses, Method
from hnetcl.model import HyperModel
from hnetcl.tasks import split_sequence
from hnetcl.training import Observer, OptimizerFactory, TaskEnd
from torch import Tensor


@hnetcl.register("task", "halves")
def halves(load, seed, *, dataset="mnist", num_tasks: Annotated[int, Ge(1)] = 2):
    return split_sequence(load, seed, dataset=dataset, num_tasks=num_tasks, val_size=0)


@hnetcl.register("hnet", "narrow")
def narrow(shapes, num_tasks, *, width: Annotated[int, Ge(1)] = 4):
    return full(shapes, num_tasks, hidden=(width,), embedding_dim=3)


"""


def example(documented: Any) -> str:
    """The first block of code in a docstring."""
    lines = dedent(documented.__doc__.partition("\n")[2]).splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith("@hnetcl.register"))
    indent = len(lines[start]) - len(lines[start].lstrip())
    block = [lines[start]]
    for line in lines[start + 1 :]:
        if line.strip() and len(line) - len(line.lstrip()) < indent:
            break
        block.append(line)
    return dedent("\n".join(block)).strip()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's file, and a YAML of theirs in a folder beside it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    documented = (Method, Observer, OptimizerFactory, metrics, scores)
    (folder / "my_parts.py").write_text(HEAD + "\n\n\n".join(map(example, documented)) + "\n")
    (folder / "mine" / "method").mkdir(parents=True)
    (folder / "mine" / "method" / "small_weights.yaml").write_text("name: small_weights\nstrength: 0.25 # of the decay\n")
    return folder


def answers(cwd: Path, *calls: list[str]) -> list[tuple[int, str]]:
    """Exit code and output of some commands, the script first."""
    asked = json.dumps([[str(cwd), [str(ROOT / "scripts" / f"{words[0]}.py"), *words[1:]]] for words in calls])
    out = cwd / "answers.json"
    subprocess.run([sys.executable, str(ROOT / "tests" / "commands.py"), str(out)], input=asked, text=True, check=True)
    found = json.loads(out.read_text())
    out.unlink()
    return [(code, output) for code, output in found]


def test_a_run_of_the_users_own_parts(parts: Path, tiny: list[str], tmp_path: Path) -> None:
    dropped = ("hnet.", "task.val_size", "task.num_tasks")
    small = [*(word for word in tiny if not word.startswith(dropped)), "trainer.steps=4", "task.num_tasks=2"]
    imports = f"imports=[{parts / 'my_parts.py'}]"
    chosen = ["task=halves", "hnet=narrow", "hnet.width=3", "optimizer=adamax", "optimizer.beta=0.8", "method=small_weights"]
    own = [imports, *chosen, "observers=[progress,printer]", "optimized_metric=worst_task"]
    untold = ["scenario=class", "inference=margin"]
    results = answers(
        tmp_path,
        ["train", *own, *small, "method.strength=0.01", "run.dir=run"],
        ["train", f"--config-dir={parts / 'mine'}", *own, *untold, *small, "run.dir=untold"],
        ["evaluate", "run=untold", imports],
        ["evaluate", "run=run", imports, *untold],
        ["train", *own, *small, "method.strength=-1", "run.dir=none"],
        ["train", *own, *small, "method.strenth=1", "run.dir=none"],
        ["train", *own, *small, "method=small_wieghts", "run.dir=none"],
        ["train", *own, *small, "observers=[printr]", "run.dir=none"],
        ["train", *own, *small, "inference=margn", "run.dir=none"],
        ["train", *own, *small, "optimizer.lr=0.01", "optimizer.gamma=1", "run.dir=none"],
        ["evaluate", "run=untold"],
    )
    good, faulty = results[:4], results[4:]
    assert [code for code, _ in good] == [0] * 4, "\n".join(output for _, output in good)
    assert [code for code, _ in faulty] == [2] * len(faulty)
    config = OmegaConf.to_container(OmegaConf.load(tmp_path / "run" / "config.yaml"))
    assert isinstance(config, dict)
    assert config["task"] == {"name": "halves", "dataset": "tiny", "num_tasks": 2}
    assert config["hnet"] == {"name": "narrow", "width": 3}
    assert config["method"] == {"name": "small_weights", "strength": 0.01}
    assert config["optimizer"] == {"name": "adamax", "lr": 0.01, "beta": 0.8}
    assert OmegaConf.load(tmp_path / "untold" / "config.yaml").method.strength == 0.25
    for number in range(2):  # what the observer prints
        assert f"{number} tensor([" in good[0][1]
    values = json.loads((tmp_path / "run" / "metrics.json").read_text())
    last = [float(value) for value in (tmp_path / "run" / "accuracy.csv").read_text().splitlines()[-1].split(",")[1:]]
    assert values["worst_task"] == min(last)
    assert f"worst_task: {min(last):.6f}" in good[0][1]
    assert "not the recorded numbers" not in good[2][1]
    assert "(scenario: class, inference: margin)" in good[3][1]
    lines = [
        "method.strength=-1: must be at least 0",
        "method.strenth=1: there is no such key; did you mean method.strength? allowed: method.name, method.str",
        "method.name=small_wieghts: did you mean small_weights? allowed: "
        + ", ".join(sorted([*names("method"), "small_weights"])),
        "observers=['printr']: printr: did you mean printer? allowed: figures, printer, progress, tensorboard",
        "inference.name=margn: did you mean margin? allowed: agreement, confidence, entropy, margin, statistics",
        "optimizer.gamma=1: there is no such key; allowed: optimizer.beta, optimizer.lr, optimizer.name (optimizer=adamax)",
        "name=halves",
    ]
    for line, (_, output) in zip(lines, faulty, strict=True):
        assert line in output
        assert output.count("\n") == 1
    assert "the run had imports=[" in faulty[-1][1]
    assert not (tmp_path / "none").exists()
