"""Runs that are killed, at any moment and at every write, and gone on with."""

import random
import re
import signal
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from faults.conftest import THOROUGH
from faults.processes import Jobs, differences

CONFIGURATIONS = {
    "quaternion": ["bn=quaternion", "method.sample=1"],
    "distilled": ["bn=complex", "bn.stats=distilled"],
    "fisher": ["bn=real", "method.importance=fisher", "method.fisher_samples=20"],
    "replay": ["method=replay", "method.size=60", "hnet=direct", "scenario=class", "bn=real"],
    "der": ["method=der", "method.size=60", "hnet=direct", "scenario=class", "bn=real"],
}
SHARE = 1e9  # a checkpoint after every step
Some = pytest.mark.parametrize("configuration", ["quaternion", "replay"] if THOROUGH <= 1 else list(CONFIGURATIONS))
Others = pytest.mark.parametrize("configuration", ["distilled", "fisher", "der"] if THOROUGH <= 1 else list(CONFIGURATIONS))


def words(configuration: str, tiny: list[str]) -> list[str]:
    own = CONFIGURATIONS[configuration]
    kept = [word for word in tiny if not (word.startswith("hnet.") and "hnet=direct" in own)]
    return ["train", *kept, *own, "trainer.checkpoint_minutes=0", "trainer.threads=1"]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(next(run.glob("tensorboard/**/events*")).parent), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "seconds" not in tag and "steps_per" not in tag]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def same(whole: Path, killed: Path) -> None:
    """Files, tensors, curves and log of a run that was killed are those of the undisturbed one."""
    assert differences(whole, killed) == []
    assert scalars(whole) == scalars(killed)
    logs = [re.findall(r"(task \d+ of \d+: .*), [0-9.]+ s$", (run / "train.log").read_text(), re.M) for run in (whole, killed)]
    assert len(logs[0]) == 3
    assert logs[0] == logs[1]
    assert not list(killed.rglob("*.tmp"))


@Some
@pytest.mark.slow
def test_killed_at_random_moments(configuration: str, tiny: list[str], jobs: Jobs, tmp_path: Path) -> None:
    """Again and again, until there is nothing left to kill."""
    command = [*words(configuration, tiny), "trainer.steps=40", "resume=true"]
    assert jobs.run(*command, f"run.dir={tmp_path / 'whole'}", share=SHARE)[0] == 0
    draws, kills, code = random.Random(configuration), 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        job = jobs.start(*command, f"run.dir={tmp_path / 'killed'}", share=SHARE)
        if kills < 2 * THOROUGH:
            while " tasks, on cpu" not in job.printed() and job.lives():  # it is not built yet
                time.sleep(0.01)
            time.sleep(draws.uniform(0, 1.5))
            job.signal(signal.SIGKILL)
            kills += 1
        code, output = job.wait()
    assert code == 0, output
    same(tmp_path / "whole", tmp_path / "killed")


@Others
@pytest.mark.slow
def test_killed_at_every_write(configuration: str, tiny: list[str], jobs: Jobs, tmp_path: Path) -> None:
    """At each of a run's writes in turn, thinned out unless the test is to be thorough."""
    command = [*words(configuration, tiny), "trainer.steps=6", "resume=true"]
    whole, told = tmp_path / "whole", tmp_path / "writes"
    options = {"share": SHARE, "dies_at": 0, "folder": str(whole), "writes": str(told)}
    assert jobs.run(*command, f"run.dir={whole}", **options)[0] == 0
    writes = int(told.read_text())
    assert writes > 100
    places = range(1, writes + 1)
    for place in random.Random(0).sample(places, min(writes, max(2, int(3 * THOROUGH)))):
        killed = tmp_path / str(place)
        code, output = jobs.run(*command, f"run.dir={killed}", share=SHARE, dies_at=place, folder=str(killed))
        assert code == -signal.SIGKILL, (place, output)
        code, output = jobs.run(*command, f"run.dir={killed}", share=SHARE)
        assert code == 0, (place, output)
        same(whole, killed)


def test_killed_once(tiny: list[str], jobs: Jobs, tmp_path: Path) -> None:
    """In the middle of the second task, and says where it goes on."""
    command = [*words("quaternion", tiny), "trainer.steps=6", "resume=true"]
    assert jobs.run(*command, f"run.dir={tmp_path / 'whole'}", share=SHARE)[0] == 0
    killed = tmp_path / "killed"
    assert jobs.run(*command, f"run.dir={killed}", share=SHARE, dies_at=70, folder=str(killed))[0] == -signal.SIGKILL
    code, output = jobs.run(*command, f"run.dir={killed}", share=SHARE)
    assert code == 0, output
    assert "goes on in task 1, after step " in output
    same(tmp_path / "whole", killed)
    assert not (killed / ".lock").exists()
