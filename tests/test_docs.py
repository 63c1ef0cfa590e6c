"""Every command and every block of the pages runs, from another directory, on small data and for few steps.

A block of Python or YAML whose first line is a path is saved there, in the directory where the commands run.
What looks like a command and is neither run here nor named in `ELSEWHERE`, with the reason, fails.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pages import PAGES, ROOT, code, commands, files
from safetensors.torch import save_file

from hnetcl.registry import KINDS

ELSEWHERE = {
    "python3 -m venv .venv": ".ci/run makes an environment in the same way",
    ".venv/bin/python -m pip install -e .": ".ci/run installs the package, with what tests need",
    ".venv/bin/python -m pip install -e '.[dev]'": "the same",
    ".venv/bin/python -m pytest": "is what runs this test",
    ".venv/bin/python -m pytest -n 2 tests/test_methods.py": "the same",
    '.venv/bin/python -m pytest -m ""': "the same",
    'python -m pytest -m "" tests/test_zoo.py': "takes minutes",
    "pip install PATH": "test_installed.py builds a wheel and installs it",
    "pip install hydra-optuna-sweeper": "is among what tests need",
    "pip install hydra-submitit-launcher": "the same",
    "python scripts/train.py -m hydra/launcher=submitit_slurm hydra.launcher.partition=gpu hydra.launcher.timeout_min=240 "
    "seed=0,1,2": "test_slurm.py does it, where there is a Slurm",
    "pip install -e '.[peers]'": ".ci/run installs them",
    "pip install -e '.[export]'": "is among what tests need",
    "pip install mlflow": "is none of what tests need; tests/standins takes its place",
    "pip install wandb": "the same",
    "tensorboard --logdir outputs": "serves until it is stopped; test_tracking.py reads what it would show",
}
AS_THEY_ARE = {"--help", "--cfg", "-cp", "resume=true"}  # a command with one of these words takes no values to make it small
PYTHONS = ("python", ".venv/bin/python")
TRAIN = [
    "trainer.steps=2",
    "trainer.batch_size=8",
    "task.num_tasks=2",
    "task.val_size=2",
]  # added to a command, so that it takes a second
BENCHMARK = {  # the same for each subject
    "bn": ["--shape", "8,8,4,4", "--rounds", "1", "--only", "real/closed_form"],
    "conv_bn": ["--shape", "4,8,6,6", "--channels", "8", "--rounds", "1", "--only", "real/pair/*"],
    "layers": ["--shape", "4,8,6,6", "--channels", "8", "--rounds", "1", "--only", "quaternion"],
    "memory": ["--steps", "70", "--only", "quaternion/tracked"],
    "train": ["--rounds", "1", "--turn", "1", "--only", "ours/all"],
    "nets": ["--rounds", "1", "--depth", "8", "--width", "4", "--batch", "4", "--only", "real"],
    "regularizer": ["--rounds", "1", "--turn", "1", "--tasks", "2,3"],
    "inference": ["--rounds", "1", "--turn", "1", "--tasks", "2", "--batches", "1"],
    "recognition": ["--ranks", "2"],
    "strategies": ["--hidden", "8", "--batch", "4", "--rounds", "1", "--turn", "1", "--only", "ours/*"],
}


def runnable(text: str, places: dict[str, str]) -> list[str]:
    """A text as script and arguments: with what stands for DIR, FOLDER and `...` put in, and made small."""
    words = shlex.split(
        re.sub(r"\b(DIR|FOLDER)\b|(?<=train\.py )\.\.\.|(?<=hnetcl train )\.\.\.", lambda found: places[found[0]], text)
    )
    words = words[1:] if words[0] in PYTHONS else words
    if words[0] == "hnetcl":  # the same as the script; test_installed.py calls the command itself
        words = [f"scripts/{words[1]}.py", *words[2:]]
    assert re.fullmatch(r"scripts/(train|evaluate|export|benchmark|report)\.py", words[0]), f"there is no rule for {text!r}"
    name, script, words = Path(words[0]).stem, str(ROOT / words[0]), words[1:]
    if name == "benchmark":
        return [script, *words, *BENCHMARK[words[0]]]
    if name in ("evaluate", "export", "report") or AS_THEY_ARE & set(words):
        return [script, *words]
    words = [re.sub(r"(n_trials=)\d+$", r"\g<1>2", word) for word in words]
    if not any(word.startswith("observers=") for word in words):
        words.append("observers=[progress,tensorboard]")  # figures take a second each time; those of DIR are drawn
    few = [re.sub(r"=([^,\[(]+),(.*,)?([^,]+)$", r"=\1" if "seed" in word else r"=\1,\3", word) for word in words]
    return [script, *(word.replace("cuda:1", "cpu") for word in few), *TRAIN, f"data.root={places['FOLDER']}"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Image sets with the names and shapes that the pages speak of."""
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "data"
    path.mkdir()
    for name, classes, shape in (("mnist", 10, (1, 28, 28)), ("cifar100", 100, (3, 32, 32))):
        tensors: dict[str, torch.Tensor] = {}
        for split, count in (("train", 12), ("test", 4)):
            labels = torch.arange(classes).repeat(count)
            images = torch.randint(0, 256, (len(labels), *shape), generator=generator, dtype=torch.uint8)
            tensors |= {f"{split}_images": images, f"{split}_labels": labels}
        save_file(tensors, path / f"{name}.safetensors")
    return path


@pytest.mark.slow
@pytest.mark.page
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_block_of_a_page_runs(page: Path, folder: Path, tmp_path: Path) -> None:
    cwd = tmp_path / "elsewhere"
    cwd.mkdir()
    run, same = tmp_path / "run", ["task=split_mnist", "bn=quaternion", *TRAIN, f"data.root={folder}"]
    places = {"DIR": str(run), "FOLDER": str(folder), "...": " ".join(same)}
    told = [(f"{page.name}: DIR", [str(ROOT / "scripts" / "train.py"), *same, f"run.dir={run}"])]
    for path in (ROOT / "tests" / "standins").glob("*.py"):
        shutil.copy(path, cwd)
    for name, text in files(page).items():
        (cwd / name).parent.mkdir(parents=True, exist_ok=True)
        (cwd / name).write_text(text, encoding="utf-8")
    if code(page):
        text = re.sub(r"\bsteps( ?= ?)\d+", r"steps\g<1>2", code(page)).replace('"DIR"', repr(str(run)))
        (cwd / "blocks.py").write_text(text, encoding="utf-8")
        told.append((f"{page.name}: Python", [str(cwd / "blocks.py")]))
    told += [(str(one), runnable(one.text, places)) for one in commands(page) if one.text not in ELSEWHERE]
    told = [one for i, one in enumerate(told) if one[1] not in [words for _, words in told[:i]]]
    answers = tmp_path / "answers.json"
    asked = json.dumps([[str(cwd), words] for _, words in told])
    subprocess.run([sys.executable, str(ROOT / "tests" / "commands.py"), str(answers)], input=asked, text=True, check=True)
    results = json.loads(answers.read_text(encoding="utf-8"))
    failed = [f"{what}\n{output}" for (what, _), (code, output) in zip(told, results, strict=True) if code]
    assert not failed, "\n".join(failed)


def test_the_pages_hold_what_is_looked_for() -> None:
    """Should a page be written in another form, commands must not be lost in silence."""
    texts = {one.text for page in PAGES for one in commands(page)}
    assert ELSEWHERE.keys() <= texts
    assert {".venv/bin/python scripts/train.py task=split_mnist bn=quaternion", "python scripts/evaluate.py run=DIR"} <= texts
    assert {"python scripts/train.py experiment=permuted_mnist_10", "python scripts/train.py method=finetune"} <= texts
    assert {f"python scripts/benchmark.py {kind}" for kind in BENCHMARK} <= {" ".join(text.split()[:3]) for text in texts}
    assert len(texts) > 50
    saved = {name for page in PAGES for name in files(page)}
    assert {"my_nets.py", "l2_init.py", "my_mlflow.py", "mine/experiment/rotated_ewc.yaml"} <= saved


@pytest.mark.parametrize("name", ["blurred.py", "l2_init.py", "remembering.py"])
def test_a_part_of_ones_own_is_short(name: str) -> None:
    """A sequence, a method, a metric: less than twenty lines of code."""
    text = files(ROOT / "CONTRIBUTING.md")[name]
    assert len([line for line in text.splitlines() if line.strip() and not line.startswith("#")]) < 20


def test_the_files_of_contributing_work_in_the_house(folder: Path, tmp_path: Path) -> None:
    """A part's file in the room that the page names, and its YAML in conf/, make it a part like all others."""
    page = ROOT / "CONTRIBUTING.md"
    house, cwd = tmp_path / "house", tmp_path / "elsewhere"
    cwd.mkdir()
    for name in ("hnetcl", "conf"):
        shutil.copytree(ROOT / name, house / name, ignore=shutil.ignore_patterns("__pycache__"))
    rows = re.findall(r"^\| \[(\w+)\]\(#[\w-]+\) \| `(\S+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    places, kinds = dict(rows), set()
    for name, text in files(page).items():
        if name.endswith(".yaml"):
            target, text = house / name.replace("mine/", "conf/"), text.partition("\n")[2]
        else:
            ((kind, part),) = re.findall(r'^@register\("(\w+)", "(\w+)"\)', text, re.MULTILINE)
            kinds.add(kind)
            target = house / places[kind].replace("NAME", part)
        before = target.read_text(encoding="utf-8") + "\n\n" if target.exists() else ""
        target.write_text(before + text, encoding="utf-8")
    assert kinds == set(KINDS)
    chosen = [
        "task=blurred",
        "bn=continual",
        "net=all_conv",
        "method=l2_init",
        "hnet=outer",
        "optimizer=nadam",
        "scenario=class",
    ]
    chosen += ["inference=energy", "optimized_metric=remembering", "observers=[losses]"]
    words = [*chosen, *TRAIN, f"data.root={folder}", "run.dir=run"]
    told = [sys.executable, "-m", "hnetcl", "train", *words]
    done = subprocess.run(
        told, cwd=cwd, env={**os.environ, "PYTHONPATH": str(house)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "remembering" in json.loads((cwd / "run" / "metrics.json").read_text())
    assert len((cwd / "run" / "losses.csv").read_text().splitlines()) == 1 + 2 * 2 * 2  # a loss and a penalty at every step


@pytest.mark.parametrize("text", ["pip install other", "python scripts/other.py", "hnetcl other"])
def test_a_command_without_a_rule_fails(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```\n{text}\n```\n", encoding="utf-8")
    (found,) = commands(page)
    assert found.text not in ELSEWHERE
    with pytest.raises(AssertionError, match="there is no rule"):
        runnable(found.text, {})
