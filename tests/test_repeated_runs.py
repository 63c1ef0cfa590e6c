"""A run once more, from its config.yaml."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hnetcl.cli.main import CONF

ROOT = CONF.parent
NETS = """
import hnetcl
from torch import nn

@hnetcl.register("net", "two_layers")
def two_layers(in_shape, num_outputs, *, width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(256, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, num_outputs))
"""


def answers(cwd: Path, *calls: list[str]) -> list[tuple[int, str]]:
    """Exit code and output of some commands, the script first."""
    asked = json.dumps([[str(cwd), [str(ROOT / "scripts" / f"{words[0]}.py"), *words[1:]]] for words in calls])
    out = cwd.parent / "answers.json"
    subprocess.run([sys.executable, str(ROOT / "tests" / "commands.py"), str(out)], input=asked, text=True, check=True)
    return [(code, output) for code, output in json.loads(out.read_text())]


@pytest.mark.slow
def test_a_run_is_repeated_to_the_last_digit(tiny: list[str], tmp_path: Path) -> None:
    cwd = tmp_path / "here"
    cwd.mkdir()
    (cwd / "my_nets.py").write_text(NETS)
    imports = "imports=[my_nets.py]"
    small = [
        *(word for word in tiny if not word.startswith("net.")),
        "net=two_layers",
        "net.width=12",
        "bn=complex",
        "seed=3",
        "trainer.steps=6",
    ]
    results = answers(
        cwd,
        ["train", *small, imports, "run.dir=first"],
        ["train", "-cp", "first", "-cn", "config", imports, "run.dir=again", "observers=[]"],
        ["train", "--config-path=first", "--config-name", "config", imports, "run.dir=other", "seed=4"],
        ["train", "-m", "-cp", "first", "-cn", "config", imports, "run.dir=null", "seed=3,4", "hydra.sweep.dir=sweep"],
        ["evaluate", "run=again", imports],
        ["train", "-cp", "first", "-cn", "config", "run.dir=none"],
        ["train", "-cp", "first", "-cn", "config", imports],
        ["train", "-cp", "first", "-cn", "config", imports, "run.dir=none", "method.bta=1"],
        ["train", "-cp", "missing", "-cn", "config", imports, "run.dir=none"],
    )
    good, faulty = results[:5], results[5:]
    assert [code for code, _ in good] == [0] * 5, "\n".join(output for _, output in good)
    accuracy = {name: (cwd / name / "accuracy.csv").read_text() for name in ("first", "again", "other", "sweep/0", "sweep/1")}
    assert accuracy["first"] == accuracy["again"] == accuracy["sweep/0"]
    assert accuracy["other"] == accuracy["sweep/1"] != accuracy["first"]
    models = [load_file(cwd / name / "model.safetensors") for name in ("first", "again")]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert {path.name for path in cwd.iterdir()} == {"my_nets.py", "first", "again", "other", "sweep"}  # none of Hydra's
    lines = ["name=two_layers", "run.dir=first: holds a run already", "did you mean method.beta?", "missing"]
    assert [code for code, _ in faulty] == [2] * len(faulty)
    for line, (_, output) in zip(lines, faulty, strict=True):
        assert line in output
        assert output.count("\n") == 1
