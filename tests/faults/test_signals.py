"""Signals to a run in the middle of a task."""

import re
import shlex
import signal
import time
from pathlib import Path

import pytest

from faults.processes import Job, Jobs, differences
from hnetcl.cli.signals import STOPPING, Signals


@pytest.fixture(scope="module")
def command(small_job: list[str]) -> list[str]:
    return ["train", *small_job, "trainer.steps=100", "trainer.threads=1", "bn=quaternion", "method.sample=1"]


@pytest.fixture(scope="module")
def whole(command: list[str], jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert jobs.run(*command, f"run.dir={run}")[0] == 0
    return run


def in_training(job: Job, run: Path, task: int = 1) -> None:
    """Waits until a task is trained."""
    log = run / "train.log"
    while not (log.exists() and f"task {task - 1} of 3" in log.read_text()):
        assert job.lives(), job.printed()
        time.sleep(0.01)
    time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_stops_a_run_where_it_goes_on(
    number: signal.Signals, command: list[str], whole: Path, jobs: Jobs, tmp_path: Path
) -> None:
    """Within a step; with one line that says how, and an exit code of its own."""
    stopped = tmp_path / "stopped"
    job = jobs.start(*command, f"run.dir={stopped}")
    in_training(job, stopped)
    job.signal(number)
    code, output = job.wait()
    assert code == 128 + number, output
    assert "Traceback" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("stopped by ")]
    told = re.match(rf"stopped by {number.name} in task \d, after step \d+; this goes on: (.*) resume=true$", line)
    assert told, line
    assert shlex.split(told[1])[-1] == f"run.dir={stopped}"
    assert not (stopped / ".lock").exists()
    code, output = jobs.run(*command, f"run.dir={stopped}", "resume=true")
    assert code == 0, output
    assert "goes on in task " in output
    assert differences(whole, stopped) == []


def test_a_second_interrupt_ends_at_once(command: list[str], jobs: Jobs, tmp_path: Path) -> None:
    job = jobs.start(*command, "net.hidden=[2000,2000]", "trainer.batch_size=100", f"run.dir={tmp_path / 'run'}")
    while not (tmp_path / "run" / "train.log").exists():
        assert job.lives(), job.printed()
        time.sleep(0.01)
    job.signal(signal.SIGINT)
    time.sleep(0.001)
    job.signal(signal.SIGINT)
    assert job.wait()[0] == 130


def test_ignored_signals_stay_ignored() -> None:
    """As nohup wants it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert not signals.asked()
            signal.raise_signal(signal.SIGTERM)
            assert signals.got == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_programs_handler_decides() -> None:
    """Submitit's, which puts the job into the queue again, or lets it go on."""
    called: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGUSR2)
            assert signals.asked()
            assert not called
            assert not signals.ends("after task 1")
            assert called == [signal.SIGUSR2]
            assert not signals.asked()
            signal.raise_signal(signal.SIGTERM)
            assert signals.ends("after task 1")
    finally:
        signal.signal(signal.SIGUSR2, before)
