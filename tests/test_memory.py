"""Sizes that no memory holds end with one line that names the likeliest key."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from hnetcl import memory
from hnetcl.build import build
from hnetcl.cli.jobs import train
from hnetcl.cli.main import CONF
from hnetcl.config import Config
from hnetcl.errors import ArgumentError
from hnetcl.memory import allocating, available, require
from hnetcl.training import Trainer

HUGE = 10**15  # bytes that no machine of today has, and that Linux refuses at once


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["task=permuted_mnist", "task.padding=1000000"], "task.padding=1000000"),
        (["task=permuted_mnist", "task.num_tasks=100000000"], "task.num_tasks=100000000"),
        (["net.hidden=[40000000,40000000]"], "net.hidden=[40000000, 40000000]"),
        (["net=lenet", "net.channels=[8000000,8000000]"], "net.channels=[8000000, 8000000]"),
        (["hnet.embedding_dim=1000000000000"], "hnet.embedding_dim=1000000000000"),
        (["hnet=full", "hnet.hidden=[1000000000]"], "hnet.hidden=[1000000000]"),
        (["net.hidden=[400000000000000000000]"], "net.hidden=[400000000000000000000]"),
    ],
)
def test_a_size_that_no_memory_holds_is_refused_before_a_directory_is_made(
    overrides: list[str], key: str, tiny: list[str], compose: Callable[..., Config], tmp_path: Path
) -> None:
    name = key.partition("=")[0]
    part, *values = [*overrides] if "." not in overrides[0] else ["", *overrides]
    others = [v for v in tiny if not v.startswith(name) and not (part == "hnet=full" and "chunk" in v)]
    with pytest.raises(ArgumentError) as caught:
        train(compose(*filter(None, [part]), *others, *values, f"run.dir={tmp_path / 'run'}"))
    assert str(caught.value).startswith(f"{key}: not enough memory (")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_linux_would_hand_out_and_then_kill_for_is_refused(
    tiny: list[str], compose: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of that size is ever asked for: a limit of a container counts before the machine's memory."""
    monkeypatch.setattr(memory, "available", lambda: 10**6)
    monkeypatch.setattr(memory, "SMALL", 10**5)
    with pytest.raises(
        ArgumentError, match=r"net\.hidden=\[4000, 4000\]: not enough memory \(.* GB are needed, 0\.001 GB are free"
    ):
        build(compose(*tiny, "net.hidden=[4000,4000]"), torch.device("cpu"))
    with pytest.raises(ArgumentError, match=r"hnet\.hidden=\[4000, 4000\]: not enough memory"):
        build(compose(*tiny, "hnet.hidden=[4000,4000]", "hnet.chunk_size=10", "hnet.compression=null"), torch.device("cpu"))


def test_a_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in (("12345\n", 12345), ("max\n", available())):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(memory, "LIMITS", (tmp_path / "memory.max", tmp_path / "nowhere"))
        assert available() == pytest.approx(expected, rel=0.2)


def test_what_fits_is_not_refused() -> None:
    require("size", 1, 1000)
    with allocating("size", 1, watch=True):
        weight = nn.Linear(300, 200).weight
        torch.empty(10**6, 10**6, device="meta")
    assert weight.shape == (200, 300)
    with pytest.raises(RuntimeError, match="must match the size"), allocating("size", 1):
        torch.zeros(2) + torch.zeros(3)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory."), torch.OutOfMemoryError("out of memory")])
def test_memory_that_ends_in_a_step_is_told_in_one_line(
    error: Exception, tiny: list[str], compose: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fit(self: Trainer, *_: object) -> None:
        raise error

    monkeypatch.setattr(Trainer, "fit", fit)
    with pytest.raises(ArgumentError, match=r"^trainer\.batch_size=16: not enough memory \(.+\); allowed: smaller values$"):
        train(compose(*tiny, f"run.dir={tmp_path / 'run'}"))


def test_a_real_refusal_of_the_allocator_is_recognised() -> None:
    for make in (lambda: torch.empty(HUGE), lambda: torch.zeros(10**10, 10**10), lambda: bytearray(HUGE)):
        with pytest.raises(ArgumentError, match="size=1: not enough memory"), allocating("size", 1):
            make()


def test_the_command_line_ends_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(CONF.parent / "scripts" / "train.py"), "net.hidden=[40000000,40000000]"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.startswith("net.hidden=[40000000, 40000000]: not enough memory")
    assert process.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
