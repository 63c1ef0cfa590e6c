"""Forks the jobs of the command line: each is a real process that starts with torch imported, and can be killed.

Reads a JSON object a line from stdin, and answers with one:

    {"words": [script, argument, ...], "cwd": folder, "output": file, ...}    starts a job; answers with its process number
    {"wait": process}                                                        answers with its exit code; minus a signal's number

A job may also be given `environment` (variables, null to remove one), `dies_at` (the number of the write at which it kills
itself, from 1; 0 only counts), `writes` (a file, to which it tells how many there were), `folder` (in which writes count),
`share` (of the time that checkpoints within a task may take), `largest_file` (bytes) and `closed` (stdout is /dev/full).
"""

import io
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot
import torch.utils.tensorboard

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from commands import exit_code

import hnetcl.tracking
import hnetcl.training.checkpoints

WRITES = ("open", "os.rename", "os.mkdir", "os.remove", "os.truncate")


def start(job: dict[str, Any]) -> int:
    """The process number of a job."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.chdir(job["cwd"])
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open("/dev/full", os.O_WRONLY) if job.get("closed") else output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, value in job.get("environment", {}).items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    sys.argv, sys.orig_argv = job["words"], [sys.executable, *job["words"]]
    sys.path[0] = str(Path(job["words"][0]).parent)
    if "share" in job:
        hnetcl.training.checkpoints.SHARE = job["share"]
    if "dies_at" in job:
        count_writes(job["folder"], job["dies_at"], job.get("writes"))
    if "largest_file" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"], resource.RLIM_INFINITY))
    os._exit(exit_code(job["words"][0]))


def count_writes(folder: str, dies_at: int, told: str | None) -> None:
    """Kills this process at a write in a folder: when a file is opened for writing, renamed, removed or a folder made."""
    count = 0

    def see(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in WRITES or not isinstance(args[0], str | os.PathLike) or not os.fspath(args[0]).startswith(folder):
            return
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        count += 1
        if count == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if told and event != "open":
            with open(told, "w", encoding="utf-8") as file:
                file.write(str(count))

    sys.addaudithook(see)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    matplotlib.pyplot.figure().savefig(io.BytesIO())
    for line in sys.stdin:
        asked = json.loads(line)
        answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]) if "wait" in asked else start(asked)
        print(json.dumps(answer), flush=True)
