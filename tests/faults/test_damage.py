"""Flipped bits, truncated files and files of other runs, over all files of finished and unfinished runs.

Nothing is silent: what is damaged is named in one line, and refused or made good; or it is not read, and the result is right.
"""

import collections
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from faults.conftest import THOROUGH
from hnetcl.cli.jobs import evaluate, train
from hnetcl.config import Config, parse_evaluation
from hnetcl.errors import ArgumentError
from hnetcl.training import RunDirectory
from hnetcl.training.checkpoints import Checkpoints
from hnetcl.training.current import CurrentTask

Compose = Callable[..., Config]
READ = (
    *("config.yaml", "tasks.json", "accuracy.csv", "classes.csv", "metrics.json", "statistics.json", "environment.json"),
    "model.safetensors",
)
SAID = {  # what else tells of a file: values that it holds are not those of the run
    "config.yaml": ("the run to go on with has",),
    "tasks.json": ("is not what the run was trained on",),
}
Outcomes = collections.Counter[str]


class Damage:
    """A damaged file, until it is put back.

    Args:
        draws: where.
    """

    def __init__(self, draws: random.Random) -> None:
        self.draws = draws

    def flip(self, content: bytes) -> bytes:
        """One bit is another."""
        place = self.draws.randrange(len(content))
        return content[:place] + bytes([content[place] ^ 1 << self.draws.randrange(8)]) + content[place + 1 :]

    def cut(self, content: bytes) -> bytes:
        """The end is missing, or all."""
        return content[: self.draws.choice([0, self.draws.randrange(len(content))])]


@pytest.fixture
def words(tiny: list[str]) -> list[str]:
    return [
        *tiny,
        "trainer.steps=6",
        "trainer.threads=1",
        "observers=[tensorboard]",
        "trainer.checkpoint_minutes=0",
        "bn=quaternion",
    ]


@pytest.fixture
def run(words: list[str], compose: Compose, tmp_path: Path) -> Path:
    """A finished run."""
    return train(compose(*words, f"run.dir={tmp_path / 'run'}"))


@pytest.fixture
def half(words: list[str], compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that died in its last task, with two checkpoints within it."""
    write, written = Checkpoints.write, []

    def dies(self: Checkpoints, current: CurrentTask | None = None) -> None:
        write(self, current)
        if current is not None and self.training.standing.done == 2:
            written.append(current.step)
            if len(written) == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", dies)
        patch.setattr("hnetcl.training.checkpoints.SHARE", 1e9)
        with pytest.raises(KeyboardInterrupt):
            train(compose(*words, f"run.dir={tmp_path / 'half'}"))
    return tmp_path / "half"


def evaluated(run: Path) -> list[float]:
    values = {"run": str(run), "task": None, "stats": "own", "device": "cpu", "scenario": None, "inference": None}
    return evaluate(parse_evaluation({**values, "imports": [], "data": {"root": None}}))


def attempt(path: Path, job: Callable[[], object], right: Callable[[], bool], printed: Callable[[], str]) -> str:
    """What became of a job that met a damaged file: an outcome that is allowed. Anything else fails."""
    printed()
    try:
        job()
    except ArgumentError as error:
        line = str(error)
        assert "\n" not in line
        assert any(text in line for text in (path.name, *SAID.get(path.name, ()))), line
        return "refused"
    told = any(
        path.name in line for line in printed().splitlines() if "damaged" in line or "missing" in line or "of another" in line
    )
    assert right(), path
    return "made good, told" if told else "same result"


def files(run: Path) -> Iterator[Path]:
    yield from sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flip", "cut"])
def test_damaged_files_of_a_finished_run(kind: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluated: what is read back is refused, the rest does not matter."""
    draws, recorded, outcomes = random.Random(kind), evaluated(run), collections.defaultdict[str, Outcomes](Outcomes)
    found: list[float] = []

    def evaluate_it() -> None:
        found.extend(evaluated(run))

    for path in files(run):
        damage, content = getattr(Damage(draws), kind), path.read_bytes()
        name = str(path.relative_to(run)).partition("/")[0]
        often = {"flip": 80, "cut": 4}[kind] if name in READ else 2
        for _ in range(max(1, int(often * THOROUGH))):
            path.write_bytes(damage(content))
            found.clear()
            outcome = attempt(path, evaluate_it, lambda: found == recorded, lambda: capsys.readouterr().out)
            assert outcome == ("refused" if name in READ else "same result"), path
            outcomes[name][outcome] += 1
        path.write_bytes(content)
    assert evaluated(run) == recorded
    report(kind, "finished", outcomes, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flip", "cut"])
def test_damaged_files_of_an_unfinished_run(
    kind: str, run: Path, half: Path, words: list[str], compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gone on with: refused, or the one before is taken and told, or made again, with the same result."""
    draws, outcomes = random.Random(kind), collections.defaultdict[str, Outcomes](Outcomes)
    copy = tmp_path / "copy"
    goes_on = compose(*words, f"run.dir={copy}", "resume=true")
    right = load_file(run / "model.safetensors")

    def same() -> bool:
        found = load_file(copy / "model.safetensors")
        return all(torch.equal(value, found[name]) for name, value in right.items()) and (
            (copy / "accuracy.csv").read_bytes() == (run / "accuracy.csv").read_bytes()
        )

    for path in files(half):
        damage, content = getattr(Damage(draws), kind), path.read_bytes()
        inside = path.relative_to(half)
        for _ in range(max(1, int({"flip": 2.5, "cut": 0.5}[kind] * THOROUGH))):
            shutil.copytree(half, copy)
            (copy / inside).write_bytes(damage(content))
            outcome = attempt(path, lambda: train(goes_on), same, lambda: capsys.readouterr().out)
            if inside.parts[0] == "checkpoints" and inside.name.startswith("last"):
                assert outcome == "made good, told"
            outcomes[str(inside).replace(inside.name, "events") if inside.parts[0] == "tensorboard" else str(inside)][
                outcome
            ] += 1
            shutil.rmtree(copy)
    report(kind, "unfinished", outcomes, capsys)


@pytest.mark.slow
def test_files_of_other_runs(
    run: Path, half: Path, words: list[str], compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file in turn is that of a run with another seed: what is read back is refused."""
    recorded, outcomes = evaluated(run), collections.defaultdict[str, Outcomes](Outcomes)
    goes_on = compose(*words, f"run.dir={half}", "resume=true")
    for seed in range(1, 2 + int(THOROUGH) // 4):
        other = train(compose(*words, f"seed={seed}", f"run.dir={tmp_path / str(seed)}"))
        for name in READ:
            content = (run / name).read_bytes()
            (run / name).write_bytes((other / name).read_bytes())
            outcomes[name][attempt(run / name, lambda: evaluated(run), lambda: False, lambda: capsys.readouterr().out)] += 1
            (run / name).write_bytes(content)
        for name in ("last.safetensors", "previous.safetensors"):
            (half / "checkpoints" / name).write_bytes((other / "checkpoints" / name).read_bytes())
        with pytest.raises(
            ArgumentError, match=r"last\.safetensors is of another run.*previous\.safetensors is of another run"
        ):
            train(goes_on)
    assert evaluated(run) == recorded
    report("swap", "finished", outcomes, capsys)
    assert {outcome for each in outcomes.values() for outcome in each} == {"refused"}


def report(kind: str, state: str, outcomes: dict[str, Outcomes], capsys: pytest.CaptureFixture[str]) -> None:
    """The table."""
    with capsys.disabled():
        for name, counts in outcomes.items():
            print(f"{kind} {state} {name}: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")


@pytest.mark.parametrize("name", ["accuracy.csv", "statistics.json", "metrics.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"trained,task_0\ninit,0.5\n"])
def test_what_is_damaged_in_a_finished_run_is_made_again(
    name: str, content: bytes | None, run: Path, words: list[str], compose: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its checkpoint, to what it was; and told."""
    before, recorded = {path: path.read_bytes() for path in (run / "accuracy.csv", run / "statistics.json")}, evaluated(run)
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    train(compose(*words, f"run.dir={run}", "resume=true"))
    assert (name == "model.safetensors" and content is None) or f"{name} is" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    assert evaluated(run) == recorded


def test_checkpoints_of_earlier_versions_are_told(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.create()
    assert directory.load_checkpoint() is None
    (directory.checkpoints / "last.pt").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"checkpoints/last\.pt is of an earlier version of hnetcl; train the run again"):
        directory.load_checkpoint()


def test_a_damaged_checkpoint_never_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.create()
    for number in range(2):
        directory.save_checkpoint({"number": number})
    whole = directory.previous.read_bytes()
    directory.checkpoint.write_bytes(directory.checkpoint.read_bytes()[:-1])
    told: list[str] = []
    state = directory.load_checkpoint(told.append)
    assert state == {"number": 0}
    (line,) = told
    assert line.startswith("checkpoints/last.safetensors is damaged (its checksum differs); goes on from ")
    directory.save_checkpoint({"number": 2})
    assert directory.previous.read_bytes() == whole
    assert directory.load_checkpoint() == {"number": 2}
