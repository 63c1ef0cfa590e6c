"""A full disk, forbidden folders, no home: one line each, nothing lost, and once it is mended the run goes on."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.processes import Jobs, differences

SHARE = 1e9


def mounts() -> bool:
    """Whether file systems can be mounted here."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode == 0


needs_mounts = pytest.mark.skipif(not mounts(), reason="file systems can't be mounted here")


@pytest.fixture
def command(tiny: list[str]) -> list[str]:
    return ["train", *tiny, "trainer.steps=10", "trainer.threads=1", "trainer.checkpoint_minutes=0"]


@pytest.fixture
def whole(command: list[str], jobs: Jobs, tmp_path: Path) -> Path:
    code, output = jobs.run(*command, f"run.dir={tmp_path / 'whole'}", share=SHARE)
    assert code == 0, output
    return tmp_path / "whole"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a quarter megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def told(output: str, text: str) -> str:
    """The one line that tells what went wrong, in an output without tracebacks."""
    assert "Traceback" not in output, output
    (line,) = [line for line in output.splitlines() if line.startswith(("run.dir=", "hydra.sweep.dir="))]
    assert text in line, line
    return line


@needs_mounts
@pytest.mark.slow
def test_a_full_disk(command: list[str], whole: Path, small_disk: Path, jobs: Jobs) -> None:
    run = small_disk / "run"
    code, output = jobs.run(*command, f"run.dir={run}", share=SHARE)
    assert code == 2
    line = told(output, "No space left on device")
    assert line.endswith("resume=true")
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    code, output = jobs.run(*command, f"run.dir={run}", "resume=true", share=SHARE)
    assert code == 0, output
    assert differences(whole, run) == []


@pytest.mark.slow
@pytest.mark.parametrize("largest", [3_000, 12_000, 60_000])
def test_a_limit_of_files(largest: int, command: list[str], whole: Path, jobs: Jobs, tmp_path: Path) -> None:
    """Whichever file meets it first."""
    run = tmp_path / "run"
    code, output = jobs.run(*command, f"run.dir={run}", share=SHARE, largest_file=largest)
    assert code == 2
    told(output, "File too large")
    code, output = jobs.run(*command, f"run.dir={run}", "resume=true", share=SHARE)
    assert code == 0, output
    assert differences(whole, run) == []


@needs_mounts
@pytest.mark.slow
def test_a_disk_that_becomes_read_only(command: list[str], whole: Path, small_disk: Path, jobs: Jobs) -> None:
    """Nothing of the old run is lost."""
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    code, output = jobs.run(*command, f"run.dir={small_disk / 'run'}", share=SHARE)
    assert code == 0, output
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for place in ("run", "new", "a/b"):
        code, output = jobs.run(*command, f"run.dir={small_disk / place}")
        assert code == 2
        told(output, "holds a run already" if place == "run" else "can't be written (Read-only file system)")
    assert differences(whole, small_disk / "run") == []
    code, output = jobs.run(*command, f"run.dir={small_disk / 'run'}", "resume=true")
    assert code == 0, output
    assert "this run is finished" in output


def test_places_that_are_none(command: list[str], jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, text in (
        ("x" * 300, "File name too long"),
        ("/proc/nowhere", "No such file or directory"),
        (f"{tmp_path}/file", "is a file"),
        (f"{tmp_path}/file/below", "Not a directory"),
    ):
        code, output = jobs.run(*command, f"run.dir={place}", cwd=tmp_path)
        assert code == 2
        told(output, text)
        assert output.count("\n") == 1, output


@pytest.mark.slow
@pytest.mark.parametrize("home", [None, "/proc/1/nowhere", "/root/there/is/none"])
def test_without_a_home(home: str | None, command: list[str], whole: Path, jobs: Jobs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, output = jobs.run(*command, f"run.dir={run}", share=SHARE, environment={"HOME": home})
    assert code == 0, output
    assert differences(whole, run) == []


def test_a_screen_that_takes_nothing(command: list[str], jobs: Jobs, tmp_path: Path) -> None:
    """The run is trained all the same."""
    code, output = jobs.run(*command, "observers=[]", f"run.dir={tmp_path / 'run'}", closed=True)
    assert code == 2
    assert output == "stdout can't be written (No space left on device): what was printed is lost, files are not\n"
    code, output = jobs.run("evaluate", f"run={tmp_path / 'run'}", closed=True)
    assert (code, output.count("\n")) == (2, 1)
    assert jobs.run("evaluate", f"run={tmp_path / 'run'}")[0] == 0
