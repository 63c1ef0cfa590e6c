"""Two processes in one directory."""

import re
import signal
import time
from pathlib import Path

import pytest

from faults.conftest import THOROUGH
from faults.processes import Jobs
from hnetcl.errors import ArgumentError
from hnetcl.training.lock import Lock


@pytest.mark.slow
def test_of_two_that_start_together_one_runs(tiny: list[str], jobs: Jobs, tmp_path: Path) -> None:
    """And the other says who it is."""
    for pair in range(max(1, int(3 * THOROUGH))):
        run = tmp_path / str(pair)
        words = ["train", *tiny, "trainer.steps=40", "observers=[]", "trainer.threads=1", f"run.dir={run}", "resume=true"]
        both = [jobs.start(*words) for _ in range(2)]
        codes, outputs = zip(*(job.wait() for job in both), strict=True)
        assert sorted(codes) == [0, 2], outputs
        winner, loser = both[codes.index(0)], outputs[codes.index(2)]
        assert re.fullmatch(rf"run\.dir={run}: is in use by process {winner.process} on \S+, since [\d :-]+\n", loser)


def test_a_living_run_is_not_resumed(tiny: list[str], jobs: Jobs, tmp_path: Path) -> None:
    """A killed one is."""
    words = ["train", *tiny, "observers=[]", "trainer.threads=1", f"run.dir={tmp_path / 'run'}", "resume=true"]
    first = jobs.start(*words, "trainer.steps=100000")
    while " tasks, on cpu" not in first.printed():
        assert first.lives(), first.printed()
        time.sleep(0.01)
    code, output = jobs.run(*words, "trainer.steps=100000")
    assert code == 2
    assert f"is in use by process {first.process} on" in output
    first.signal(signal.SIGKILL)
    assert first.wait()[0] == -signal.SIGKILL
    again = jobs.start(*words, "trainer.steps=100000")
    while " tasks, on cpu" not in again.printed():
        assert again.lives(), again.printed()
        time.sleep(0.01)
    again.signal(signal.SIGTERM)
    assert again.wait()[0] == 128 + signal.SIGTERM


def test_a_lock_is_free_once_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    first = Lock(path)
    with pytest.raises(ArgumentError, match=r"^run\.dir=.*: is in use by process \d+ on "):
        Lock(path)
    first.release()
    first.release()
    assert not path.exists()
    Lock(path).release()
