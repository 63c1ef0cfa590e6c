"""How a job was called, and by what: what a run's environment.json says."""

import platform
import re
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hnetcl
from hnetcl.cli.words import pasted, quoted, read

PACKAGES = ("torch", "torchvision", "hydra-core")
NOT_IN_NAMES = ("run.", "data.root", "device=", "imports=", "observers=", "optimized_metric=", "resume=", "hydra")
LONGEST_NAME = 120  # bytes; file systems allow 255
HOME = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Call:
    """One job as it was called.

    Args:
        words: that were typed, the program's name first; in a multirun those of the whole.
        overrides: the job's own.
        directory: that a multirun gives to the job, and its folder for all jobs; None outside of multiruns.
        run: the directory of the run whose bound this is; None where it is none.
    """

    words: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    directory: str | None = None
    sweep: str | None = None
    run: Path | None = None

    def command(self) -> str:
        """What was typed, as a shell takes it."""
        return pasted(self.words)

    def name(self) -> str:
        """What the job was told besides the defaults, as a folder's name.

        First what differs among the jobs of a multirun, then chosen parts and the like, then single values. Where the run lies,
        and what may differ between a run and its continuation, is left out.
        """
        typed = [override for word in self.words if (override := read(word)) is not None]
        swept = {override.key_or_group for override in typed if override.is_sweep_override()}

        def rank(word: str) -> tuple[bool, bool]:
            key = word.partition("=")[0]
            return key not in swept, "." in key

        told = (word.lstrip("+~") for word in self.overrides)
        words = sorted((word for word in told if not word.startswith(NOT_IN_NAMES)), key=rank)
        return _within(",".join(re.sub(r"[^\w.+,=\[\]-]+", "_", word) for word in words), LONGEST_NAME)

    def continued(self, path: Path) -> str:
        """What goes on with the run at `path`, or with the whole multirun, as a shell takes it."""
        key, folder = ("run.dir", str(self.run or path)) if self.sweep is None else ("hydra.sweep.dir", self.sweep)
        kept = [word for word in self.words if word.lstrip("+").partition("=")[0] not in (key, "resume")]
        return pasted([*kept, quoted(key, folder), "resume=true"])


def _within(name: str, most: int) -> str:
    """The name, cut where a part of it ends."""
    return name if len(name.encode()) <= most else _within(name.rpartition(",")[0] or name[: len(name) // 2], most)


PYTHON = Call()  # no command line: a script of the user's own


def environment(call: Call) -> dict[str, Any]:
    """What a result may depend on besides its configuration.

    Returns:
        When it was, the command line, the job's own overrides, versions, and the commits of the working trees that hnetcl and
        the current directory belong to; `-dirty` where there are changes that no commit holds.
    """
    commits = {top: commit for folder in (HOME, Path.cwd()) for top, commit in _commit(folder).items()}
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": call.command(),
        "overrides": list(call.overrides),
        "versions": {
            "hnetcl": hnetcl.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "platform": platform.platform(),
        "commits": commits,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(folder: Path) -> dict[str, str]:
    """Working tree -> commit; empty where there is no working tree, no commit, or no git."""
    answers = []
    for arguments in (["rev-parse", "--show-toplevel"], ["describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]):
        command = ["git", "-C", str(folder), *arguments]
        try:
            process = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        except OSError:
            return {}
        answers.append(process.stdout.strip() if process.returncode == 0 else "")
    top, commit = answers
    return {top: commit} if top and commit else {}
