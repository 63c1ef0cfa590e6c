"""Jobs in processes of their own, and what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils._pytree import tree_flatten

from hnetcl.cli.main import CONF
from hnetcl.training import RunDirectory

SCRIPTS = CONF.parent / "scripts"
TIMES = ("seconds", "seconds_total", "steps_per_second", "seconds_of_task")  # in which two equal runs differ


class Jobs:
    """Starts jobs of the command line, quickly.

    Args:
        folder: for what they print.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def start(self, *words: str, cwd: Path | None = None, **options: Any) -> "Job":
        """Starts a job: `train` or `evaluate`, and its overrides."""
        self.number += 1
        output = self.folder / f"job{self.number}.txt"
        output.touch()
        script = str(SCRIPTS / f"{words[0]}.py")
        job = {"words": [script, *words[1:]], "cwd": str(cwd or self.folder), "output": str(output), **options}
        return Job(self, self.ask(job), output)

    def run(self, *words: str, **options: Any) -> tuple[int, str]:
        """Exit code and output of a job."""
        return self.start(*words, **options).wait()

    def ask(self, what: dict[str, Any]) -> int:
        """The server's answer."""
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.write(json.dumps(what) + "\n")
        self.server.stdin.flush()
        return int(json.loads(self.server.stdout.readline()))

    def close(self) -> None:
        """Ends the server."""
        self.server.kill()
        self.server.communicate()


class Job:
    """A process."""

    def __init__(self, jobs: Jobs, process: int, output: Path) -> None:
        self.jobs, self.process, self.output = jobs, process, output

    def signal(self, number: int) -> None:
        """Sends a signal."""
        os.kill(self.process, number)

    def lives(self) -> bool:
        """Whether it has not ended."""
        try:
            return Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def printed(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace")

    def wait(self) -> tuple[int, str]:
        """Exit code, minus the number of the signal that has killed it, and what it has printed."""
        return self.jobs.ask({"wait": self.process}), self.printed()


def differences(first: Path, second: Path) -> list[str]:
    """In what two finished runs differ, beside times: tensors of model and checkpoint, R, metrics, statistics."""
    found = []
    for name in ("accuracy.csv", "classes.csv", "statistics.json", "tasks.json"):
        if (first / name).read_bytes() != (second / name).read_bytes():
            found.append(name)
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (first, second)]
    found += [f"metrics: {k}" for k in metrics[0] if k not in TIMES and metrics[0][k] != metrics[1].get(k)]
    models = [load_file(run / "model.safetensors") for run in (first, second)]
    found += [f"model: {name}" for name in models[0].keys() ^ models[1].keys()]
    found += [f"model: {n}" for n in models[0].keys() & models[1].keys() if not torch.equal(models[0][n], models[1][n])]
    states = [RunDirectory(run).load_checkpoint() or {} for run in (first, second)]
    return found + [f"checkpoint: {where}" for where in _differing(without_times(states[0]), without_times(states[1]))]


def without_times(state: Any) -> Any:
    """The same nested values without times."""
    if isinstance(state, dict):
        return {key: without_times(value) for key, value in state.items() if key not in TIMES}
    return state


def _differing(first: Any, second: Any) -> list[str]:
    (values, kind), (others, other_kind) = (tree_flatten(each) for each in (first, second))
    if kind != other_kind:
        return ["structure"]
    return [str(i) for i, (a, b) in enumerate(zip(values, others, strict=True)) if not _equal(a, b)]


def _equal(first: Any, second: Any) -> bool:
    if not isinstance(first, torch.Tensor):
        return bool(first == second)
    return first.shape == second.shape and bool(((first == second) | (first.isnan() & second.isnan())).all())
