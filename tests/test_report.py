"""Reports of many runs."""

import csv
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from hnetcl.cli.jobs import train
from hnetcl.cli.main import CONF
from hnetcl.cli.plain import read_config
from hnetcl.cli.report import report
from hnetcl.config import Config, EvaluationConfig
from hnetcl.errors import ArgumentError
from hnetcl.reporting import comparison, find_runs
from hnetcl.reporting.runs import RunRecord
from hnetcl.training import RunDirectory

Compose = Callable[..., Config]
MODULES = ("torch", "matplotlib", "hydra")


@pytest.fixture(scope="module")
def made(small_job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from hnetcl.cli.plain import typed_config

    path = tmp_path_factory.mktemp("made") / "run"
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        train(typed_config(compose("config", [*small_job, "trainer.steps=5", "observers=[]", f"run.dir={path}"])))
    return path


def copied(made: Path, folder: Path, values: dict[str, Any], accuracy: float) -> Path:
    """A run like the one that was made, with other values and another accuracy, sealed as a run seals itself."""
    shutil.copytree(made, folder)
    directory = RunDirectory(folder)
    tensors = directory.load_model()
    config = read_config(directory.config)
    for key, value in values.items():
        group, _, own = key.rpartition(".")
        (config[group] if group else config)[own] = value
    directory.config.write_text(yaml.safe_dump(config))
    metrics = directory.read_metrics() | {"average_accuracy": accuracy}
    directory.write_json(directory.metrics, metrics)
    directory.save_model(tensors)
    return folder


@pytest.fixture(scope="module")
def sweep(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 runs: two are broken, one is unfinished."""
    top = tmp_path_factory.mktemp("sweep")
    for number in range(30):
        beta, seed = (0.01, 0.1, 1.0)[number % 3], number // 3
        copied(made, top / f"{number}", {"method.beta": beta, "seed": seed}, 0.8 + 0.05 * (number % 3) + 0.001 * seed)
    (top / "4" / "metrics.json").write_text("{")
    (top / "7" / "model.safetensors").unlink()
    log = top / "7" / "train.log"
    log.write_text(log.read_text() + "2026-11-27 10:00:00,000 the run ended early: method.beta=1: task 1, step 3: not finite\n")
    (top / "11" / "model.safetensors").unlink()
    return top


def answer(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CONF.parent / "scripts" / "report.py"), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_a_report_of_thirty_runs_names_those_that_are_not_whole(sweep: Path, tmp_path: Path) -> None:
    """Through the door, from another folder: all runs have a row, and the whole takes seconds."""
    started = time.perf_counter()
    process = answer(str(sweep), "--out", "report", "--baseline", "method.beta=0.01", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert time.perf_counter() - started < 60  # ten seconds on an idle machine

    def table(name: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO((tmp_path / "report" / f"{name}.csv").read_text())))

    rows = table("runs")
    assert len(rows) == 30
    odd = {Path(row["run"]).name: (row["status"], row["reason"]) for row in rows if row["status"] != "complete"}
    assert odd == {
        "4": ("damaged", "metrics.json is damaged, or of another run: model.safetensors was written with another"),
        "7": ("failed", "method.beta=1: task 1, step 3: not finite"),
        "11": ("unfinished", "3 of 3 tasks are done"),
    }
    assert "30 runs: 27 complete, 1 unfinished, 1 failed, 1 damaged" in process.stdout
    groups = table("comparison")
    assert [group["method.beta"] for group in groups] == ["0.01", "0.1", "1.0"]
    assert float(groups[0]["average_accuracy"]) == pytest.approx(0.8 + 0.001 * 4.5)
    classes = table("classes")
    assert [row["class"] for row in classes] == list("012345")
    assert list(classes[0]) == ["class", "0.01", "0.1", "1.0"]
    assert "| **0.90" in (tmp_path / "report" / "comparison.md").read_text()
    for name in ("methods", "accuracy_over_tasks", "accuracy_matrix", "accuracy_curves", "row_statistics"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "report" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    html = (tmp_path / "report" / "report.html").read_text()
    assert html.count("<img") == html.count("data:image/png;base64,") == 5
    assert "<h2>Classes</h2>" in html
    assert "http" not in html.replace("https", "http").split("<pre>")[0]
    assert r"\begin{tabular}{lr" in (tmp_path / "report" / "comparison.tex").read_text()


def test_help_answers_before_anything_is_imported(tmp_path: Path) -> None:
    code = f"import sys, hnetcl.cli.report as r; r.parser(); print([m for m in {MODULES} if m in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "DIR=None: is missing: name folders of runs"),
        (["none"], "DIR=none: there is no such folder"),
        (["."], "DIR=.: there is no run at or below it"),
        (["--format", "docx", "."], "report: argument --format: invalid choice: 'docx'"),
        (["--commands", "hsu"], "commands=hsu: allowed: hsu2018_split_mnist"),
        (["--commands", "hsu2018_split_mnist", "--seeds", "0,a"], "seeds=0,a: must be whole numbers"),
        (["--seeds", "0", "."], "seeds=0: goes unused; allowed with --commands"),
        (["--published", "--by", "seed", "."], "by=seed: goes unused with --published; allowed with a comparison"),
        (["--commands", "hsu", "."], "DIR=.: goes unused with --commands; allowed with a comparison, --published"),
        (["--published", "--claims", "none.csv", "."], "DIR=.: there is no run"),
    ],
)
def test_refused_in_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        report(words)
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(message)
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--by", "method.bet"], "by=method.bet: did you mean method.beta?"),
        (["--metrics", "acuracy"], "metrics=acuracy: "),
        (["--baseline", "method.beta=7"], "baseline=method.beta=7: must be one group of the table, but is 0"),
        (["--baseline", "nothing"], "baseline=nothing: must be KEY=VALUE"),
    ],
)
def test_refused_of_what_was_found(words: list[str], message: str, sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report([str(sweep), *words])
    assert capsys.readouterr().err.startswith(message)


def test_runs_below_any_folder_are_found_once(made: Path, tmp_path: Path) -> None:
    deep = copied(made, tmp_path / "a" / "b" / "run", {}, 0.5)
    (tmp_path / "link").symlink_to(deep)
    lines = [{"directory": str(tmp_path / "7"), "overrides": ["seed=7", "method.beta=-1"], "reason": "method.beta=-1: must be"}]
    (tmp_path / "refused.jsonl").write_text(
        "\n".join(map(json.dumps, lines)) + '\nno json\n{"directory": "a\\u0000b", "overrides": [], "reason": "x"}\n'
    )
    (tmp_path / "multirun" / "3").mkdir(parents=True)
    (tmp_path / "multirun" / "multirun.yaml").write_text("x: 1")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.yaml").write_text("&a [*a]")
    found = find_runs([tmp_path, tmp_path / "a"], read_config)
    assert [(run.path.name, run.status) for run in found] == [
        ("run", "complete"),
        ("odd", "damaged"),
        ("7", "failed"),
        ("refused.jsonl line 2", "damaged"),
        ("refused.jsonl line 3", "damaged"),
        ("3", "unfinished"),
    ]
    assert found[2].config == {"seed": "7", "method.beta": "-1"}
    with pytest.raises(ArgumentError, match="there is no such folder"):
        find_runs([tmp_path / "none"], read_config)


def test_published_numbers_beside_own(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run belongs to a row by its whole configuration; what is not run is told."""
    from hnetcl.cli.protocols import wanted
    from hnetcl.reporting import read_claims, verdicts

    every = read_claims(CONF / "published.csv")
    assert all(0 < claim.value < 1 and claim.allowed > 0 for claim in every)
    assert {claim.protocol for claim in every} <= {path.stem for path in (CONF / "experiment").glob("*.yaml")}
    claim = next(each for each in every if each.method == "L2, domain")
    config = wanted(claim)
    assert config["method.lambda_"] == 0.5
    near, far = ({**config, "seed": 3, "run.dir": "x"}, {**config, "method.lambda_": 0.4})
    runs = [RunRecord(Path("a"), "complete", "", each, {"average_accuracy": 0.7}) for each in (near, near, far)]
    table, unmet = verdicts([claim], runs, wanted)
    assert [cell.text for cell in table.rows[0]][4:9] == ["0.7000 ± 0.0000", "2", "+0.0400", "0.1110", "within"]
    assert not unmet
    strict = replace(claim, tolerance=0.01)
    assert verdicts([strict], runs, wanted)[0].rows[0][8].text == "outside"
    report(["--commands", "hsu2018_split_mnist", "--seeds", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len([each for each in every if each.protocol == "hsu2018_split_mnist"])
    assert lines[0].startswith("hnetcl train experiment=hsu2018_split_mnist scenario=task method=finetune")
    bad = tmp_path / "bad.csv"
    bad.write_text("protocol,method\nx,y\n")
    with pytest.raises(ArgumentError, match="line 2 has no column metric"):
        read_claims(bad)


def test_a_run_from_before_a_key_was_there_has_its_default(made: Path, tmp_path: Path) -> None:
    def read(path: Path) -> dict[str, Any]:
        return {
            group: {k: v for k, v in values.items() if k not in ("clip", "in_algebra")} if isinstance(values, dict) else values
            for group, values in read_config(path).items()
        }

    (now,), (older,) = find_runs([made], read_config), find_runs([made], read)
    assert older.config == now.config
    assert "trainer.clip" in now.config


def test_every_published_row_is_a_command_that_is_accepted() -> None:
    """Its values are those of the protocol, and of the method: one row of each method."""
    from hnetcl.cli.protocols import claims, wanted

    methods = {(claim.protocol, claim.method.partition(",")[0]): claim for claim in claims(None)}
    for claim in methods.values():
        said = dict(word.split("=", 1) for word in claim.overrides)
        found = {key: str(value) for key, value in wanted(claim).items()}
        assert found["trainer.batch_size"] == said.get("trainer.batch_size", "128")
        assert found["method.name"] == said["method"]


def test_a_refused_job_of_a_sweep_is_a_row_with_its_reason(tiny: list[str], tmp_path: Path) -> None:
    """Through the doors: what never became a run is told, beside the run that did, until it becomes one."""
    script = CONF.parent / "scripts" / "train.py"
    words = [
        *tiny,
        "trainer.steps=2",
        "task.num_tasks=2",
        "observers=[]",
        "hydra.sweep.dir=sweep",
        "hydra.sweep.subdir=a/${hydra.job.num}",
    ]
    process = subprocess.run(
        [sys.executable, str(script), "-m", *words, "method.beta=0.1,-1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    found = find_runs([tmp_path / "sweep"], read_config)
    assert [(str(run.path.relative_to(tmp_path)), run.status) for run in found] == [
        ("sweep/a/0", "complete"),
        ("sweep/a/1", "failed"),
    ]
    assert found[1].reason == "method.beta=-1: must be at least 0"
    assert found[1].config["method.beta"] == "-1"
    shutil.copytree(tmp_path / "sweep" / "a" / "0", tmp_path / "sweep" / "a" / "1")
    assert [run.status for run in find_runs([tmp_path / "sweep"], read_config)] == ["complete", "complete"]


def test_what_a_run_would_lose_without_its_rows(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As evaluate.py says; kept beside the report, and the run stays as it is."""
    from hnetcl.cli import jobs
    from hnetcl.cli.delta import with_deltas

    run = tmp_path / "run"
    shutil.copytree(made, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    asked: list[str] = []
    plain = jobs.evaluate

    def counted(config: EvaluationConfig) -> list[float]:
        asked.append(config.stats)
        return plain(config)

    monkeypatch.setattr(jobs, "evaluate", counted)
    (tmp_path / "out").mkdir()
    records = find_runs([run], read_config)
    (first,), notes = with_deltas(records, tmp_path / "out")
    (again,), _ = with_deltas(records, tmp_path / "out")
    assert asked == ["batch", "0"]
    assert not notes
    assert first.metrics == again.metrics
    values = json.loads((tmp_path / "out" / "delta.json").read_text())
    foreign = next(value for key, value in values.items() if key.endswith("stats=0"))
    assert first.metrics["foreign_row_delta"] == foreign - first.metrics["average_accuracy"]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert "foreign_row_delta" in comparison([first]).table.header


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--delta"], "delta=True: needs --out FOLDER"),
        (["--out", "{run}/figures/report"], "out={run}/figures/report: lies in the directory of a run"),
        (["--out", "{run}/config.yaml/x"], "out={run}/config.yaml/x: lies in the directory of a run"),
    ],
)
def test_a_report_never_writes_into_a_run(
    words: list[str], message: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        report([str(made), *(word.replace("{run}", str(made)) for word in words)])
    assert capsys.readouterr().err.startswith(message.replace("{run}", str(made)))
