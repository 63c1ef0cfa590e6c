"""Bounds that the run's own command trains beside it."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hnetcl.cli.jobs import train
from hnetcl.cli.main import CONF
from hnetcl.cli.plain import read_config
from hnetcl.config import Config, parse
from hnetcl.errors import ArgumentError
from hnetcl.registry import register
from hnetcl.training import Observer, RunDirectory

ROOT = CONF.parent
NAMES = ("joint", "separate", "finetune")


@pytest.fixture
def short(tiny: list[str]) -> list[str]:
    small = [word for word in tiny if not word.startswith("trainer.steps")]
    return [
        *small,
        "trainer.steps=2",
        "task.num_tasks=2",
        "trainer.statistics=none",
        "observers=[]",
        "bn=real",
        "trainer.threads=1",
    ]


def test_one_command_trains_them_and_the_report_shows_them(short: list[str], tmp_path: Path) -> None:
    """From the command line: a run, a sweep, what is refused, and a report over all."""
    one = [*short, "scenario=class", "references=[joint,separate,finetune]", f"run.dir={tmp_path / 'all' / 'one'}"]
    asked = [
        ["train.py", *one],
        ["train.py", "-m", *short, "seed=0,1", "references=[joint]", f"hydra.sweep.dir={tmp_path / 'all' / 'swept'}"],
        [
            "train.py",
            *short,
            "scenario=class",
            "inference=agreement",
            "references=[separate]",
            f"run.dir={tmp_path / 'refused'}",
        ],
        ["report.py", str(tmp_path / "all"), "--metrics", "average_accuracy,intransigence"],
    ]
    answers = tmp_path / "answers.json"
    words = json.dumps([[str(tmp_path), [str(ROOT / "scripts" / script), *own]] for script, *own in asked])
    subprocess.run([sys.executable, str(ROOT / "tests" / "commands.py"), str(answers)], input=words, text=True, check=True)
    trained, swept, impossible, told = json.loads(answers.read_text())
    assert [code for code, _ in (trained, swept, impossible, told)] == [0, 0, 2, 0], trained[1]
    assert impossible[1].startswith("references=separate: can't be trained beside this run (inference=agreement: ")
    assert len(impossible[1].splitlines()) == 1
    assert not (tmp_path / "refused").exists()
    assert "joint (reference)" in told[1]
    assert "3 runs: 3 complete; and 5 references of them" in told[1]
    for run, names in ((tmp_path / "all" / "one", NAMES), *((tmp_path / "all" / "swept" / k, ("joint",)) for k in "01")):
        own = parse(read_config(run / "config.yaml"))
        assert sorted(path.name for path in (run / "references").iterdir()) == sorted(names)
        for name in names:
            bound = RunDirectory(run / "references" / name)
            config = parse(read_config(bound.config))
            assert bound.is_finished()
            assert config.method["name"] == name
            for key in ("seed", "net", "task", "scenario", "trainer", "optimizer"):
                assert getattr(config, key) == getattr(own, key)
            if name != "separate":
                assert (config.hnet, config.bn) == (own.hnet, own.bn)
            else:
                assert (config.hnet["name"], config.hnet["per_task"], config.bn["rows"]) == ("direct", ["*"], "task")


class StopsJoint(Observer):
    """Asks the training of a joint reference to stop, once."""

    stopped = False

    def __init__(self, directory: RunDirectory) -> None:
        self.joint = directory.path.name == "joint"

    def on_tick(self, step: int) -> None:
        if self.joint and step == 2 and not type(self).stopped:
            type(self).stopped = True
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("users_parts")
def test_what_was_interrupted_goes_on(short: list[str], compose: Callable[..., Config], tmp_path: Path) -> None:
    """Within a reference too, to the same bits; the run itself and finished references stay as they are."""
    register("observer", "stops_joint")(StopsJoint)
    own = [word for word in short if word != "observers=[]"]
    words = [*own, "observers=[stops_joint]", "references=[finetune,joint,separate]"]
    train(compose(*short, "references=[joint]", f"run.dir={tmp_path / 'whole'}"))
    halves = tmp_path / "halves"
    with pytest.raises(SystemExit):
        train(compose(*words, f"run.dir={halves}"))
    models = [RunDirectory(path).model for path in (halves, halves / "references" / "finetune")]
    before = [path.stat().st_mtime_ns for path in models]
    train(compose(*words, f"run.dir={halves}", "resume=true"))
    assert [path.stat().st_mtime_ns for path in models] == before
    assert RunDirectory(halves / "references" / "separate").is_finished()
    first, second = (load_file(tmp_path / k / "references" / "joint" / "model.safetensors") for k in ("whole", "halves"))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_a_fault_of_the_run_is_no_fault_of_its_references(short: list[str], compose: Callable[..., Config]) -> None:
    with pytest.raises(ArgumentError, match=r"^task\.num_tasks"):
        train(compose(*short, "task.num_tasks=99", "references=[joint]"))
    with pytest.raises(ArgumentError, match=r"^references.*ewc"):
        compose("references=[joint,ewc]")
