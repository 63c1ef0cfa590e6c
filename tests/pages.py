"""What the pages hold: blocks, files that a reader is told to save, commands."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LISTINGS = (
    "hnetcl/registry.py ",
    "task 0, step 2: ",
    "goes on in task ",
    "task 1 (2, 3): ",
    "run.dir=",
)  # how a block starts that lists files, or shows output, and no commands


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


def file_name(language: str, lines: list[str]) -> str | None:
    """The file that a block is to be saved as; None where it names none.

    Its first line says so, `# NAME.py` or `# FOLDER/NAME.yaml`; the second where `# @package` must be the first.
    """
    line = lines[1] if lines[0].startswith("# @package") else lines[0]
    found = re.fullmatch(r"# (\S+\.(\w+))", line)
    return found[1] if found is not None and found[2] == {"python": "py"}.get(language, language) else None


def files(page: Path) -> dict[str, str]:
    """What a reader of the page saves: path -> text. Every block of YAML is such a file."""
    found: dict[str, str] = {}
    for language, first, lines in fences(page):
        name = file_name(language, lines) if language in ("python", "yaml") else None
        assert name is not None or language != "yaml", f"{page.name}:{first}: where is this YAML to be saved?"
        if name is not None:
            assert name not in found, f"{page.name}:{first}: {name} is there twice"
            found[name] = "\n".join(lines) + "\n"
    return found


def code(page: Path) -> str:
    """All blocks of Python that are no files, one after the other."""
    blocks = [lines for language, _, lines in fences(page) if language == "python" and file_name(language, lines) is None]
    return "\n".join(line for lines in blocks for line in lines)


def commands(page: Path) -> list[Found]:
    """All commands of a page, in order: lines of blocks, code within the text, cells of tables that hold overrides."""
    found = []
    for language, first, lines in fences(page):
        assert language in ("", "python", "yaml"), f"{page.name}:{first}: no rule for blocks of {language}"
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
