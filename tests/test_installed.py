"""hnetcl from its wheel, in another folder, as `pip install` leaves it."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_holds_every_room() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "hnetcl").rglob("__init__.py")}
    assert {"hnetcl.conf", *there} == set(told)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel lies unpacked, its command in bin/."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("hnetcl", "conf"):
        copytree(ROOT / name, source / name, ignore=ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built, source], check=True)
    (wheel,) = built.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", built / "site", wheel], check=True)
    return built / "site"


def call(site: Path, cwd: Path, *words: str, code: int = 0) -> str:
    """What the command prints, to both streams."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    process = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == code, process.stdout + process.stderr
    return process.stdout + process.stderr


@pytest.mark.slow
@pytest.mark.page
def test_trains_evaluates_and_sweeps_from_another_folder(site: Path, tiny: list[str], tmp_path: Path) -> None:
    command, module = str(site / "bin" / "hnetcl"), (sys.executable, "-m", "hnetcl")
    where = call(site, tmp_path, sys.executable, "-c", "import hnetcl; print(hnetcl.__file__)")
    assert where.strip() == str(site / "hnetcl" / "__init__.py")
    small = [*tiny, "trainer.steps=3", "trainer.threads=1"]
    call(site, tmp_path, command, "train", "bn=quaternion", *small, "run.dir=run")
    recorded = (tmp_path / "run" / "accuracy.csv").read_text().splitlines()[-1].split(",")[1:]
    for evaluate in ((command, "evaluate"), (*module, "evaluate")):
        told = call(site, tmp_path, *evaluate, "run=run")
        assert f"average_accuracy: {sum(map(float, recorded)) / 3:.6f}" in told
    call(site, tmp_path, *module, "train", "-m", "bn=real,complex", *small, "hydra.sweep.dir=sweep")
    assert {path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()} == {"0", "1"}
    typed = json.loads((tmp_path / "sweep" / "1" / "environment.json").read_text())[-1]["command"]
    assert typed.startswith(f"{sys.executable} -m hnetcl train -m bn=real,complex")


@pytest.mark.slow
@pytest.mark.page
def test_takes_a_net_and_an_experiment_from_the_users_folder(site: Path, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "my_nets.py").write_text(
        "import torch\n"
        "from hnetcl import register\n"
        "@register('net', 'two_layers')\n"
        "def two_layers(in_shape, num_outputs, *, width=8):\n"
        "    size = in_shape[0] * in_shape[1] * in_shape[2]\n"
        "    layers = torch.nn.Linear(size, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, num_outputs)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), *layers)\n"
    )
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "short.yaml").write_text("# @package _global_\ntrainer:\n  batch_size: 4\n")
    words = [value for value in tiny if not value.startswith(("net.", "trainer.batch_size"))]
    words += ["imports=[my_nets.py]", "net=two_layers", "net.width=4", "trainer.steps=2", "run.dir=run"]
    call(site, tmp_path, str(site / "bin" / "hnetcl"), "train", "--config-dir", "mine", "experiment=short", *words)
    assert "batch_size: 4\n" in (tmp_path / "run" / "config.yaml").read_text()
    told = call(site, tmp_path, str(site / "bin" / "hnetcl"), "evaluate", "run=run", "imports=[my_nets.py]")
    assert "average_accuracy" in told


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ([], 0, "hnetcl train task=split_mnist bn=quaternion"),
        (["--help"], 0, "hnetcl evaluate run=DIR"),
        (["train", "--help"], 0, "output_regularizer"),
        (["trian"], 2, "command=trian: did you mean train? allowed: evaluate, export, report, train"),
        (["train", "bn=octonion"], 2, "bn=octonion: allowed: complex, fused, quaternion, real, virtual"),
    ],
)
def test_says_what_there_is(words: list[str], code: int, line: str, tmp_path: Path) -> None:
    told = call(ROOT, tmp_path, sys.executable, "-m", "hnetcl", *words, code=code)
    assert line in told
    assert code == 0 or told.count("\n") == 1
    assert not [*tmp_path.iterdir()]
