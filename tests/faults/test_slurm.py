"""A job of a cluster that is preempted."""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from faults.processes import SCRIPTS, Jobs, differences
from faults.slurm import cluster, has_slurm


@pytest.mark.slow
@pytest.mark.skipif(not has_slurm(), reason="needs root, and Debian's packages slurm-wlm and munge")
@pytest.mark.skipif(find_spec("submitit") is None, reason="needs hydra-submitit-launcher")
def test_a_preempted_job_requeues_and_resumes(tiny: list[str], jobs: Jobs, tmp_path: Path) -> None:
    """By itself, in its directory, to the same numbers; what waits for it on the login node sees it end well."""
    words = [*tiny, "trainer.steps=4000", "trainer.threads=1", "method.sample=1"]
    whole, sweep = tmp_path / "whole", tmp_path / "sweep"
    assert jobs.run("train", *words, f"run.dir={whole}")[0] == 0
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=low", "hydra.launcher.timeout_min=30"]
    command = [sys.executable, str(SCRIPTS / "train.py"), "-m", *words, *launcher, f"hydra.sweep.dir={sweep}"]
    with cluster(tmp_path / "slurm") as environment:
        waits = subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        log, end = sweep / "0" / "train.log", time.monotonic() + 300

        def slurm(*command: str) -> str:
            return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()

        def wait_for(text: str) -> None:
            while not (log.exists() and text in log.read_text()):
                assert waits.poll() is None, waits.communicate()[0]
                assert time.monotonic() < end, [path.read_text() for path in sweep.rglob("*.err")]
                for job in slurm("squeue", "-h", "-t", "PENDING", "-p", "low", "-o", "%A").split():
                    slurm("scontrol", "update", f"JobId={job}", "StartTime=now")  # it would wait for two minutes
                time.sleep(0.2)

        wait_for("task 0 of 3")
        slurm("srun", "-p", "high", "sleep", "1")
        wait_for("goes on ")
        wait_for("task 1 of 3")
        slurm("scancel", "-s", "USR2", slurm("squeue", "-h", "-o", "%A"))
        wait_for("goes on in task 2, after step ")
        printed, _ = waits.communicate(timeout=300)
    told = log.read_text() + "".join(path.read_text() for path in sweep.rglob("*.err"))
    assert waits.returncode == 0, printed + told
    assert "SIGTERM in task 1, after step " in told
    assert "SIGUSR2 in task 2, after step " in told
    starts = json.loads((sweep / "0" / "environment.json").read_text())
    assert len(starts) == 3
    found = differences(whole, sweep / "0")
    assert [each for each in found if not each.startswith("checkpoint")] == []  # submitit draws from Python's random numbers


def test_a_job_that_slurm_starts_again_goes_on(tiny: list[str], jobs: Jobs, tmp_path: Path) -> None:
    """Without being told to."""
    words = ["train", *tiny, "trainer.steps=2", "observers=[]", f"run.dir={tmp_path / 'run'}"]
    assert jobs.run(*words)[0] == 0
    assert jobs.run(*words, environment={"SLURM_RESTART_COUNT": "0"})[0] == 2
    code, output = jobs.run(*words, environment={"SLURM_RESTART_COUNT": "1"})
    assert code == 0
    assert "this run is finished" in output
    assert "SLURM_RESTART_COUNT" not in os.environ
