"""Every command and every Python block of README and docs/ runs, from another directory, on small data and for few steps.

What looks like a command and is neither run here nor named in `ELSEWHERE`, with the reason, fails.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {
    "python3 -m venv .venv": ".ci/run makes an environment in the same way",
    ".venv/bin/python -m pip install -e .": ".ci/run installs the package, with what tests need",
    ".venv/bin/python -m pip install -e '.[dev]'": "the same",
    ".venv/bin/python -m pytest": "is what runs this test",
    "python -m pytest -m zoo": "takes minutes; .ci/run does it",
    "pip install PATH": "test_installed.py builds a wheel and installs it",
    "pip install hydra-optuna-sweeper": "is among what tests need",
    "tensorboard --logdir outputs": "serves until it is stopped; test_tracking.py reads what it would show",
}
LISTINGS = ("hnetcl/registry.py ", "task 0, step 2: ")  # how a block starts that lists files, or shows output, and no commands
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
    "memory": ["--steps", "70", "--only", "quaternion/tracked"],
    "train": ["--rounds", "1", "--turn", "1", "--only", "ours/all"],
    "regularizer": ["--rounds", "1", "--turn", "1", "--tasks", "2,3"],
    "inference": ["--rounds", "1", "--turn", "1", "--tasks", "2", "--batches", "1"],
}


@dataclass(frozen=True)
class Found:
    """Something to run, and where it stands."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def fences(page: Path) -> Iterator[tuple[str, int, list[str]]]:
    """The blocks of a page: language, number of the first line, lines."""
    lines = page.read_text(encoding="utf-8").splitlines()
    marks = [i for i, line in enumerate(lines) if line.startswith("```")]
    for start, end in zip(marks[::2], marks[1::2], strict=True):
        yield lines[start][3:], start + 2, lines[start + 1 : end]


def commands(page: Path) -> list[Found]:
    """All commands of a page, in order: lines of blocks, code within the text, cells of tables that hold overrides."""
    found = []
    for language, first, lines in fences(page):
        assert language in ("", "python"), f"{page.name}:{first}: no rule for blocks of {language}"
        if not language and not lines[0].startswith(LISTINGS):
            texts = ((first + i, part.strip()) for i, line in enumerate(lines) for part in line.split("&&"))
            found += [Found(page.name, number, text) for number, text in texts]
    inside, column = False, -1
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        inside ^= line.startswith("```")
        if inside:
            continue
        codes = re.findall(r"`([^`]+)`", line)
        found += [
            Found(page.name, number, c)
            for c in codes
            if re.match(r"(\S*python\S* |scripts/|hnetcl |pip |tensorboard )", c) and " " in c
        ]
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        column = -1 if not cells else column
        if column >= 0 and cells[column].startswith("`"):
            found.append(Found(page.name, number, f"python scripts/train.py {cells[column].strip('`')}"))
        for title in ("command", "say"):
            column = cells.index(title) if title in cells else column
    return sorted(found, key=lambda one: one.line)


def runnable(text: str, places: dict[str, str]) -> list[str]:
    """A text as script and arguments: with what stands for DIR, FOLDER and `...` put in, and made small."""
    words = shlex.split(
        re.sub(r"\b(DIR|FOLDER)\b|(?<=train\.py )\.\.\.|(?<=hnetcl train )\.\.\.", lambda found: places[found[0]], text)
    )
    words = words[1:] if words[0] in PYTHONS else words
    if words[0] == "hnetcl":  # the same as the script; test_installed.py calls the command itself
        words = [f"scripts/{words[1]}.py", *words[2:]]
    assert re.fullmatch(r"scripts/(train|evaluate|benchmark)\.py", words[0]), f"there is no rule for {text!r}"
    name, script, words = Path(words[0]).stem, str(ROOT / words[0]), words[1:]
    if name == "benchmark":
        return [script, *words, *BENCHMARK[words[0]]]
    if name == "evaluate" or any(word.startswith("--") or word == "resume=true" for word in words):
        return [script, *words]
    words = [re.sub(r"(n_trials=)\d+$", r"\g<1>2", word) for word in words]
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_block_of_a_page_runs(page: Path, folder: Path, tmp_path: Path) -> None:
    cwd = tmp_path / "elsewhere"
    cwd.mkdir()
    run, same = tmp_path / "run", ["task=split_mnist", "bn=quaternion", *TRAIN, f"data.root={folder}"]
    places = {"DIR": str(run), "FOLDER": str(folder), "...": " ".join(same)}
    told = [(f"{page.name}: DIR", [str(ROOT / "scripts" / "train.py"), *same, f"run.dir={run}"])]
    blocks = [(first, lines) for language, first, lines in fences(page) if language == "python"]
    for _, lines in blocks:
        if any('register("net"' in line for line in lines):  # the page tells to save it
            (cwd / "my_nets.py").write_text("\n".join(lines), encoding="utf-8")
    if blocks:
        code = "\n".join(line for _, lines in blocks for line in lines).replace('"DIR"', repr(str(run)))
        (cwd / "blocks.py").write_text(code, encoding="utf-8")
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
    assert {f"python scripts/benchmark.py {kind}" for kind in BENCHMARK} <= {text.partition(" --")[0] for text in texts}
    assert len(texts) > 35


@pytest.mark.parametrize("text", ["pip install other", "python scripts/report.py", "hnetcl report"])
def test_a_command_without_a_rule_fails(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```\n{text}\n```\n", encoding="utf-8")
    (found,) = commands(page)
    assert found.text not in ELSEWHERE
    with pytest.raises(AssertionError, match="there is no rule"):
        runnable(found.text, {})
