"""What users type reaches a run as they mean it; what is wrong with it is told in one line."""

import json
import os
import pickle
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hnetcl.cli.call import Call
from hnetcl.cli.main import CONF, option_names
from hnetcl.cli.words import as_text, pasted, prepared, read
from hnetcl.config import Config
from hnetcl.errors import ArgumentError
from hnetcl.metrics import summary
from hnetcl.registry import COSTS, INFERENCE_METRICS, names

SCRIPTS = CONF.parent / "scripts"


def script(name: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *arguments]
    values = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=values, capture_output=True, encoding="utf-8", check=False)


@pytest.fixture
def short(tiny: list[str]) -> list[str]:
    return [*tiny, "trainer.steps=2", "task.num_tasks=2"]


# ---------------------------------------------------------------------- words


@pytest.mark.parametrize(
    "path",
    [
        "a=b",
        "~x/~",
        "a[0]",
        "[a,b]",
        "a b",
        " a",
        "é/ü",
        "a,b",
        "a'b",
        'a"b',
        "a\\",
        "007",
        "1e3",
        "true",
        "a(b)",
        "{a: 1}",
        "a#b",
    ],
)
@pytest.mark.parametrize("key", ["run.dir", "data.root", "run", "hydra.sweep.dir"])
def test_a_path_is_taken_as_text(key: str, path: str) -> None:
    override = read(prepared([f"{key}={path}"])[0])
    assert override is not None
    assert str(override.value()) == path


def test_paths_that_are_more_than_text() -> None:
    """What is quoted already, null, an interpolation and a sweep stay; a home directory is found."""
    for word in ("run.dir='a b'", "data.root=null", "run.dir=outputs/${seed}", "~run.dir", "run.dir"):
        assert prepared([word]) == [word]
    assert prepared(["-m", "data.root=a,b"]) == ["-m", "data.root=a,b"]
    assert prepared(["run.dir=~/a"]) == [f"run.dir={Path.home() / 'a'}"]
    with pytest.raises(ArgumentError, match=r"run.dir=\\udcc3\\udca8: can't be read in this locale"):
        prepared(["run.dir=\udcc3\udca8"])


@pytest.mark.parametrize("word", ["run.dir=a'b", "run.dir=$HOME é", "run.dir=a\"b' c", "imports=['a=b.py',c.py]", "seed=1"])
def test_words_are_pasted_as_they_are(word: str) -> None:
    assert shlex.split(pasted([word])) == [word]


def test_the_quoted_form_of_a_list() -> None:
    assert as_text("imports=[a=b.py,c.py]") == "\"imports=['a=b.py',c.py]\""
    assert as_text("net.model=a=b") == "\"net.model='a=b'\""
    assert as_text("seed=1") is None


def test_epochs_take_the_place_of_steps(compose: Callable[..., Config]) -> None:
    for words in (["trainer.epochs=1"], ["experiment=split_mnist_hypercl", "trainer.epochs=3"], ["++trainer.epochs=2"]):
        trainer = compose(*words).trainer
        assert trainer["steps"] is None
        assert trainer["epochs"] is not None
    assert compose("trainer.epochs=null").trainer["steps"] == 1000
    assert compose("trainer.epochs=1", "trainer.steps=null").trainer["epochs"] == 1


@pytest.mark.parametrize(
    "word", ["task=null", "bn=null", "trainer=5", "hnet=[full,direct]", "net=mlp,null", "~task", "~net=mlp"]
)
def test_an_option_has_a_name(word: str) -> None:
    with pytest.raises(ArgumentError, match=rf"^{word.partition('=')[0].lstrip('~')}=.*: allowed: "):
        prepared([word], option_names("config"))
    assert prepared(["task=null"], option_names("evaluate")) == ["task=null"]


# ---------------------------------------------------------------------- refused at the start


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["method=finetune", "hnet.hidden=[16]"],
            "there is no such key; allowed: hnet.heads, hnet.name, hnet.per_task (hnet=direct)",
        ),
        (["hnet=low_rank", "hnet.head_scal=own"], "hnet.hidden, hnet.name, hnet.rank (hnet=low_rank)"),
        (["hnett.hiddn=[1]"], "did you mean hnet.hidden?"),
        (["imports=[a=b.py]"], "as text it is \"imports=['a=b.py']\""),
        (["hydra.run.dir=/proc/none"], "hydra.run.dir=/proc/none: can't be written"),
        (["-m", "hydra.sweep.dir=/proc/none"], "hydra.sweep.dir=/proc/none: can't be written"),
        (["--config-dir=nowhere"], "nowhere' not found"),
        ([f"--config-dir={CONF}"], "bn/complex.yaml is a file of hnetcl's own; rename yours"),
        (
            ["~task", "task.num_tasks=3"],
            "task=null: allowed: fourier_mnist, gaussians, image_folder, mixed, permuted_mnist, regression_1d, rotated_mnist, "
            "split_cifar10_100, split_mnist",
        ),
        (["~net.hidden", "trainer.stepps=3"], "trainer.stepps=3: there is no such key"),
        (["~trainer.stepps"], "trainer.stepps=?: there is no such key"),
    ],
)
def test_one_line_without_torch(words: list[str], line: str, tmp_path: Path) -> None:
    """These are answered before torch is imported."""
    process = script("train", *words, cwd=tmp_path)
    assert process.returncode == 2
    assert line in process.stderr
    assert process.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["/proc/none", "file/below", "x" * 300])
def test_a_directory_that_cant_be_written(place: str, short: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = script("train", *short, f"run.dir={place}", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.startswith(f"run.dir={place}: can't be written (")
    assert process.stderr.count("\n") == 1


# ---------------------------------------------------------------------- runs


@pytest.mark.slow
def test_odd_paths_in_a_narrow_encoding(short: list[str], data_root: Path, tmp_path: Path) -> None:
    """A run and its evaluation in places with letters that Hydra, ASCII and shells take for something else."""
    odd = tmp_path / "data=é [1]"
    odd.mkdir()
    (odd / "klein-ü.safetensors").write_bytes((data_root / "tiny.safetensors").read_bytes())
    words = [*short, f"data.root={odd}", "task.dataset='klein-ü'", "run.dir=a=b [ö] ~"]
    process = script("train", *words, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert process.returncode == 0, process.stderr
    run = tmp_path / "a=b [ö] ~"
    recorded = (run / "accuracy.csv").read_text().splitlines()[-1].split(",")
    assert "klein-ü" in (run / "train.log").read_text(encoding="utf-8")
    (start,) = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    assert shlex.split(start["command"])[1:] == [str(SCRIPTS / "train.py"), *words]
    assert (start["versions"]["torch"], start["versions"]["python"]) == (torch.__version__, sys.version.split()[0])
    for task, values in (("task=1", recorded[2:]), ("task=null", recorded[1:])):
        process = script("evaluate", f"run={run}", task, cwd=tmp_path, LC_ALL="C")
        assert process.returncode == 0, process.stderr
        assert all(process.stdout.count(f"{float(value):.6f}") >= 2 for value in values)
    process = script("evaluate", f"run={run}", "inference=confidence", cwd=tmp_path)
    assert process.stderr == "inference=confidence: in scenario=task the task is told; allowed with scenario=domain, class\n"


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_nothing(short: list[str], tmp_path: Path) -> None:
    """Neither `| head -1`, nor a closed output; help ends quietly."""
    for number, (words, end) in enumerate([(["--help"], "| true"), (short, "| head -1"), (short, ">&-")]):
        line = shlex.join([sys.executable, str(SCRIPTS / "train.py"), *words, *([f"run.dir={number}"] if number else [])])
        command = ["bash", "-c", f"{line} {end}; echo code ${{PIPESTATUS[0]}} >&2"]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert process.stderr == "code 0\n"
        assert not number or (tmp_path / str(number) / "metrics.json").exists()


def test_an_interrupted_run_says_what_goes_on_with_it(tiny: list[str], tmp_path: Path) -> None:
    place = "a b=[c]'s"
    command = [sys.executable, str(SCRIPTS / "train.py"), *tiny, f"run.dir={place}"]
    with subprocess.Popen(
        [*command, "trainer.steps=100000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a background job ignores, and its children too
    ) as process:
        while not list(tmp_path.glob(f"{place.replace('[', '[[]')}/tensorboard/*")):
            time.sleep(0.1)
            assert process.poll() is None
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        output = process.stdout.read()
    assert process.returncode == 130, output
    (hint,) = [line for line in output.splitlines() if line.endswith(" resume=true")]
    assert hint.startswith("stopped by SIGINT in task 0, after step ")
    words = shlex.split(hint.partition("this goes on: ")[2])
    assert words[:-2] == [*command[:-1], "trainer.steps=100000"]
    override = read(words[-2])
    assert override is not None
    assert (override.key_or_group, str(override.value())) == ("run.dir", place)


def test_a_multirun_goes_on_as_a_whole() -> None:
    call = Call(("python", "train.py", "-m", "seed=0,1", "hydra.sweep.dir=x"), ("seed=1",), "/a b/1", "/a b")
    assert call.continued(Path("/a b/1")) == "python train.py -m seed=0,1 'hydra.sweep.dir=/a b' resume=true"


@pytest.mark.slow
def test_faults_of_jobs_in_other_processes(short: list[str], tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = ["trainer.steps=2,-2", "device=cpu,cuda:99", f"hydra.sweep.dir={tmp_path}"]
    process = script("train", "-m", *short, *sweep, "hydra/launcher=joblib", "hydra.launcher.n_jobs=1", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.count("trainer.steps=-2: must be at least 1\n") == 2
    assert process.stderr.count("device=cuda:99: not available") == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["0"]
    assert sum("trainer.steps=-2" in line for line in (tmp_path / "refused.jsonl").read_text().splitlines()) == 2


def test_faults_come_back_from_other_processes() -> None:
    error = pickle.loads(pickle.dumps(ArgumentError("seed", -1, "must be at least 0")))
    assert (str(error), error.name, error.value) == ("seed=-1: must be at least 0", "seed", -1)


@pytest.mark.slow
def test_a_sweeper_is_told_the_metric(short: list[str], tmp_path: Path) -> None:
    """Optuna minimizes; a sweep whose jobs are all refused has no best, and says so by its exit code alone."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    others = [word for word in short if not word.startswith("optimizer.lr=")]
    search = ["-m", *others, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"]
    words = ["optimizer.lr=interval(0.001,0.05)", "optimized_metric=forgetting", f"hydra.sweep.dir={tmp_path}"]
    process = script("train", *search, *words, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    found = [json.loads((tmp_path / str(i) / "metrics.json").read_text())["forgetting"] for i in range(2)]
    assert f"best_value: {min(found)}" in (tmp_path / "optimization_results.yaml").read_text()
    process = script("train", *search, "optimizer.lr=interval(-2,-1)", f"hydra.sweep.dir={tmp_path / 'none'}", cwd=tmp_path)
    assert process.returncode == 2
    told = [line for line in process.stderr.splitlines() if "A new study created" not in line]  # which is Optuna's own
    assert len(told) == 2
    assert all("must be greater than 0" in line for line in told)


def test_a_metric_to_optimize_is_one_of_the_metrics() -> None:
    said = [torch.eye(2)] * 2, [torch.arange(2)] * 2
    assert set(names("metric")) == summary(torch.eye(2), torch.zeros(2), *said).keys()
    assert not set(names("metric")) & {*INFERENCE_METRICS, *COSTS}
