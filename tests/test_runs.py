"""Runs as people make them: train, reload, resume, sweep."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

import hnetcl
from hnetcl.bn.statistics import STATS
from hnetcl.cli.jobs import evaluate, train
from hnetcl.cli.main import CONF
from hnetcl.config import Config, parse_evaluation
from hnetcl.errors import ArgumentError
from hnetcl.training import RunDirectory, Step, Trainer

FIGURES = [f"{name}.{kind}" for name in ("accuracy_matrix", "accuracy_curves", "row_statistics") for kind in ("png", "pdf")]
FILES = [
    "config.yaml",
    "tasks.json",
    "accuracy.csv",
    "classes.csv",
    "metrics.json",
    "statistics.json",
    "model.safetensors",
    "train.log",
]
SAME = [
    "accuracy.csv",
    "classes.csv",
    "statistics.json",
    "tasks.json",
]  # files that two equal runs have in common, byte by byte


def script(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = CONF.parent / "scripts" / f"{name}.py"
    return subprocess.run([sys.executable, str(path), *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def arguments(run: Path, **values: object) -> dict[str, object]:
    return {
        "run": str(run),
        "task": None,
        "stats": "own",
        "device": "auto",
        "scenario": None,
        "inference": None,
        "imports": [],
        "data": {"root": None},
        **values,
    }


def equal(first: Path, second: Path) -> bool:
    """Whether two runs found the same, tensor for tensor."""
    models = [load_file(run / "model.safetensors") for run in (first, second)]
    same = models[0].keys() == models[1].keys() and all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    return same and all((first / name).read_bytes() == (second / name).read_bytes() for name in SAME)


@pytest.fixture
def run(tiny: list[str], compose: Callable[..., Config], tmp_path: Path) -> Path:
    return train(compose(*tiny, f"run.dir={tmp_path / 'run'}"))


@pytest.mark.parametrize("bn", ["real", "complex", "quaternion"])
@pytest.mark.parametrize("hnet", ["full", "chunked"])
def test_hypernetworks_learn_every_task_and_keep_it(
    bn: str, hnet: str, tiny: list[str], compose: Callable[..., Config], tmp_path: Path
) -> None:
    overrides = [value for value in tiny if hnet == "chunked" or "chunk_embedding" not in value]
    run = train(compose(*overrides, f"bn={bn}", f"hnet={hnet}", "trainer.steps=60", "method.beta=0.3", f"run.dir={tmp_path}"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["average_accuracy"] > 0.95
    assert metrics["forgetting"] < 0.03


@pytest.mark.parametrize(
    ("stats", "bn"),
    [
        *((stats, "quaternion") for stats in STATS),
        *((stats, bn) for stats in ("learnable", "generated", "distilled") for bn in ("real", "complex")),
    ],
)
def test_every_mode_learns_and_reloads(
    stats: str, bn: str, tiny: list[str], compose: Callable[..., Config], tmp_path: Path
) -> None:
    """Every kind of statistics keeps all tasks, and a reload in a fresh model gives the recorded numbers."""
    overrides = [f"bn={bn}", f"bn.stats={stats}", "trainer.steps=80", "method.beta=0.3", f"run.dir={tmp_path}"]
    run = train(compose(*tiny, *overrides))
    recorded = [float(value) for value in (run / "accuracy.csv").read_text().splitlines()[-1].split(",")[1:]]
    assert evaluate(parse_evaluation(arguments(run))) == recorded
    assert sum(recorded) / 3 > 0.9
    layers = {"body.2", "body.5"} if stats not in ("frozen", "batch") else set()
    assert json.loads((run / "statistics.json").read_text())["misfits"].keys() == layers


@pytest.mark.parametrize(
    ("stats", "asked", "message"),
    [
        ("frozen", "batch", "uses no statistics; allowed: own"),
        ("batch", "0", "keeps no running statistics; allowed: own, batch"),
        ("generated", "0", "the hypernetwork writes this run's statistics; allowed: own, batch"),
        ("distilled", "recalibrated", "the hypernetwork writes this run's statistics; allowed: own, batch"),
    ],
)
def test_statistics_that_a_run_has_not(
    stats: str, asked: str, message: str, tiny: list[str], compose: Callable[..., Config], tmp_path: Path
) -> None:
    """An evaluation never ignores the statistics that it was told to use."""
    run = train(compose(*tiny, f"bn.stats={stats}", "trainer.steps=2", f"run.dir={tmp_path}"))
    with pytest.raises(ArgumentError, match=rf"stats={asked}: .*{message}"):
        evaluate(parse_evaluation(arguments(run, stats=asked)))


def test_recalibrated_rows_serve_as_well(tiny: list[str], compose: Callable[..., Config], tmp_path: Path) -> None:
    """Statistics taken anew from the training images serve as well as running averages, and better than a wrong row."""
    run = train(compose(*tiny, "trainer.steps=60", "method.beta=0.3", f"run.dir={tmp_path}"))
    own, anew, wrong = (sum(evaluate(parse_evaluation(arguments(run, stats=s)))) / 3 for s in ("own", "recalibrated", "0"))
    assert anew > own - 0.05
    assert anew > wrong


@pytest.mark.parametrize("net", ["net=lenet", "task=permuted_mnist", "optimizer=sgd"])
def test_other_parts_run(net: str, tiny: list[str], compose: Callable[..., Config], tmp_path: Path) -> None:
    extra = ["net.channels=[4,8]", "net.hidden=[16]", "hnet.chunk_size=100"] if net == "net=lenet" else []
    run = train(compose(net, *tiny, *extra, "trainer.steps=5", f"run.dir={tmp_path}"))
    assert all((run / name).exists() for name in FILES)
    assert evaluate(parse_evaluation(arguments(run)))


@pytest.mark.parametrize("method", ["finetune", "joint"])
def test_baselines(method: str, tiny: list[str], compose: Callable[..., Config], tmp_path: Path) -> None:
    overrides = [value for value in tiny if not value.startswith("hnet.")]
    run = train(compose(f"method={method}", *overrides, "trainer.steps=60", f"run.dir={tmp_path}"))
    accuracy = json.loads((run / "metrics.json").read_text())["average_accuracy"]
    assert accuracy > 0.95 if method == "joint" else accuracy > 0.5


def test_a_run_leaves_its_files(run: Path) -> None:
    assert all((run / name).stat().st_size for name in FILES)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.safetensors", "previous.safetensors"}
    assert {path.name for path in (run / "figures").iterdir()} == set(FIGURES)
    lines = (run / "accuracy.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["trained", "init", "0", "1", "2"]
    state = RunDirectory(run).load_checkpoint()
    assert state is not None
    assert state["standing"]["done"] == 3
    rows = load_file(run / "model.safetensors")["net.body.2.running_mean"]
    assert len(rows) == 3
    assert all(row.abs().sum() > 0 for row in rows)
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"average_accuracy", "forgetting", "bwt", "fwt", "average_incremental_accuracy"} <= metrics.keys()
    assert {"compression", "seconds", "seconds_total", "steps_per_second"} <= metrics.keys()


def test_the_event_file_holds_every_tag_for_every_task(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()
    for task in range(3):
        for name in ("loss", "penalty", "gradient_norm", "learning_rate", "batch_accuracy"):
            values = events.Scalars(f"{name}/task_{task}")
            assert [value.step for value in values] == [30 * task + k for k in (1, 11, 21, 30)]
        assert [value.step for value in events.Scalars(f"accuracy/task_{task}")] == [*range(task + 1, 4)]
        assert f"val_accuracy/task_{task}" in tags["scalars"]
        assert f"embedding/task_{task}" in tags["histograms"]
    assert events.Scalars("penalty/task_0")[-1].value == 0
    assert events.Scalars("penalty/task_2")[-1].value > 0
    rows = RunDirectory(run).read_accuracy()[1:]
    average = [sum(row[: k + 1]) / (k + 1) for k, row in enumerate(rows)]
    assert [value.value for value in events.Scalars("accuracy/average")] == pytest.approx(average)
    for tag in ("accuracy_matrix", "accuracy_curves", "row_statistics"):
        assert [value.step for value in events.Images(tag)] == [3]  # the run is too quick for more than the last
        assert events.Images(tag)[0].encoded_image_string == (run / "figures" / f"{tag}.png").read_bytes()
    for layer in ("body.2", "body.5"):
        assert [value.step for value in events.Scalars(f"misfit/{layer}/task_1")] == [2, 3]
        assert [value.step for value in events.Scalars(f"distance/{layer}")] == [2, 3]
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    patterns = {pattern for chart in layout.category[0].chart for pattern in chart.multiline.tag}
    for name in ("accuracy", "loss"):
        shown = {tag for tag in tags["scalars"] if any(re.match(pattern, tag) for pattern in patterns)}
        assert {f"{name}/task_{task}" for task in range(3)} <= shown
    margins = [series for chart in layout.category[0].chart for series in chart.margin.series]
    assert {margins[0].value, margins[0].lower, margins[0].upper} <= set(tags["scalars"])
    assert "split" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()


def hyperparameters(folder: Path) -> tuple[dict[str, Any], set[str], dict[str, float]]:
    """What TensorBoard's HPARAMS shows of a run: its values, all its columns, and its metrics."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    content = events.PluginTagToContent("hparams")
    columns = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    values = {
        name: value.number_value if value.HasField("number_value") else value.string_value
        for name, value in start.hparams.items()
    }
    metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    tags = [info.name.tag for info in columns.metric_infos]
    metrics = {tag.removeprefix("metrics/"): events.Scalars(tag) for tag in tags}
    assert all(len(numbers) == 1 for numbers in metrics.values())
    return values, {info.name for info in columns.hparam_infos}, {name: numbers[0].value for name, numbers in metrics.items()}


def test_hparams_are_in_the_run_itself(run: Path) -> None:
    assert len(list((run / "tensorboard").rglob("events*"))) == 1
    values, columns, metrics = hyperparameters(run / "tensorboard")
    assert values["trainer.steps"] == 30
    assert values["net.hidden"] == "[16, 16]"
    assert values["trainer.epochs"] == "None"
    assert columns > values.keys()
    assert {"optimizer.momentum", "method.lookahead"} <= columns
    assert not {"run.dir", "resume"} & columns
    assert metrics == pytest.approx(json.loads((run / "metrics.json").read_text()))


def test_the_projector_shows_the_newest_embeddings(run: Path) -> None:
    rows = (run / "tensorboard" / "embeddings.tsv").read_text().splitlines()
    saved = load_file(run / "model.safetensors")
    embeddings = next(value for name, value in saved.items() if value.shape == (3, 8) and "embedding" in name)
    assert torch.tensor([[float(v) for v in row.split("\t")] for row in rows]) == pytest.approx(embeddings)
    assert (run / "tensorboard" / "tasks.tsv").read_text().splitlines() == ["task 0", "task 1", "task 2"]


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "task"), [("step", 0), ("checkpoint", 1), ("step", 2)])
def test_a_resumed_run_has_every_event_once(
    moment: str,
    task: int,
    run: Path,
    tiny: list[str],
    compose: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Be it killed in the middle of a task, or after a task was told and before its checkpoint was written."""
    died = tmp_path / "died"
    tell, save = Trainer._tell, RunDirectory.save_checkpoint

    def dies_in_a_step(self: Trainer, step: Step) -> None:
        tell(self, step)
        if (moment, step.task, step.step) == ("step", task, 11):
            raise KilledError

    def dies_before_a_checkpoint(self: RunDirectory, state: dict[str, Any]) -> None:
        if (moment, state["standing"]["done"]) == ("checkpoint", task + 1):
            raise KilledError
        save(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_tell", dies_in_a_step)
        patch.setattr(RunDirectory, "save_checkpoint", dies_before_a_checkpoint)
        with pytest.raises(KilledError):
            train(compose(*tiny, f"run.dir={died}"))
    for _ in range(2):  # the second time nothing is left to train
        train(compose(*tiny, f"run.dir={died}", "resume=true"))
    whole, resumed = (
        EventAccumulator(str(path / "tensorboard"), size_guidance={"scalars": 0, "images": 0}) for path in (run, died)
    )
    for events in (whole, resumed):
        events.Reload()
    assert whole.Tags() == resumed.Tags()
    for tag in whole.Tags()["scalars"]:
        steps = [[value.step for value in events.Scalars(tag)] for events in (whole, resumed)]
        assert steps[0] == steps[1]
        if tag.startswith(("loss", "accuracy", "misfit")):
            assert [v.value for v in whole.Scalars(tag)] == [v.value for v in resumed.Scalars(tag)]
    for tag in whole.Tags()["images"]:
        assert [image.step for image in resumed.Images(tag)][-1:] == [3]
        assert len({image.step for image in resumed.Images(tag)}) == len(resumed.Images(tag))
    assert hyperparameters(died / "tensorboard")[:2] == hyperparameters(run / "tensorboard")[:2]
    for name in FIGURES:
        assert (run / "figures" / name).read_bytes() == (died / "figures" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("observers", [[], ["progress"], ["tensorboard"], ["figures"]])
def test_observers_that_are_left_out_leave_nothing(
    observers: list[str], tiny: list[str], compose: Callable[..., Config], tmp_path: Path
) -> None:
    run = train(compose(*tiny, "trainer.steps=2", f"observers=[{','.join(observers)}]", f"run.dir={tmp_path}"))
    assert any((run / "figures").iterdir()) == ("figures" in observers)
    assert any((run / "tensorboard").iterdir()) == ("tensorboard" in observers)
    assert ("task 0 of 3" in (run / "train.log").read_text()) == ("progress" in observers)


@pytest.mark.slow
def test_the_first_run_tells_nothing_of_other_libraries(tiny: list[str], tmp_path: Path) -> None:
    """matplotlib tells that it has made its font cache, where there is none yet. Slow imports wait until they are needed."""
    path = CONF.parent / "scripts" / "train.py"
    words = [*tiny, "trainer.steps=2", f"run.dir={tmp_path / 'run'}"]
    environment = {**os.environ, "MPLCONFIGDIR": str(tmp_path / "fonts")}
    process = subprocess.run([sys.executable, str(path), *words], env=environment, capture_output=True, text=True, check=True)
    assert list((tmp_path / "fonts").glob("fontlist*"))
    assert "HYDRA" not in process.stdout + process.stderr
    assert "font" not in process.stdout + process.stderr
    code = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print(*sorted({'matplotlib', 'tensorboard'} & sys.modules.keys()), 'imported'))\n"
        f"sys.argv = ['evaluate.py', 'run={tmp_path / 'run'}']\n"
        f"runpy.run_path({str(path.with_name('evaluate.py'))!r}, run_name='__main__')"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "imported"


def test_evaluation_from_a_moved_directory_prints_what_training_printed(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    run.rename(moved)
    process = script("evaluate", f"run={moved}", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    recorded = [float(v) for v in (moved / "accuracy.csv").read_text().splitlines()[-1].split(",")[1:]]
    log = (moved / "train.log").read_text()
    for value in recorded:
        assert process.stdout.count(f"{value:.6f}") >= 2
        assert f"{value:.6f}" in log
    assert evaluate(parse_evaluation(arguments(moved))) == recorded
    assert evaluate(parse_evaluation(arguments(moved, task=1))) == recorded[1:2]


def test_rows_matter(run: Path) -> None:
    own, of_task_0 = (evaluate(parse_evaluation(arguments(run, stats=stats))) for stats in ("own", "0"))
    assert own[0] == of_task_0[0]
    assert own != of_task_0
    assert len(evaluate(parse_evaluation(arguments(run, stats="batch")))) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": 3}, "task=3: the run has tasks 0 to 2"),
        ({"stats": "3"}, "stats=3: the run has tasks 0 to 2"),
        ({"stats": "mine"}, "stats=mine: allowed: own, batch, recalibrated, or a task's number"),
        ({"run": "nowhere"}, "run=nowhere: holds no run"),
        ({"device": "cuda:99"}, "device=cuda:99: not available"),
    ],
)
def test_refused_evaluations(values: dict[str, object], message: str, run: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        evaluate(parse_evaluation(arguments(run) | values))


def test_damaged_models_are_told(run: Path) -> None:
    path = run / "model.safetensors"
    tensors = load_file(path)
    fewer = {name: value[:2] if "running" in name or "tracked" in name else value for name, value in tensors.items()}
    RunDirectory(run).save_model(fewer)
    with pytest.raises(ArgumentError, match=r"net.body.2.running_mean has 2 rows of statistics, but there are 3 tasks"):
        evaluate(parse_evaluation(arguments(run)))
    RunDirectory(run).save_model({name: value.long() for name, value in tensors.items()})
    with pytest.raises(
        ArgumentError, match=r"model.safetensors is damaged \((hnet|net)\.\S+ is of torch.int64, expected torch.float32"
    ):
        evaluate(parse_evaluation(arguments(run)))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArgumentError, match=r"model.safetensors is damaged"):
        evaluate(parse_evaluation(arguments(run)))
    path.unlink()
    with pytest.raises(ArgumentError, match=r"model.safetensors is missing"):
        evaluate(parse_evaluation(arguments(run)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.yaml", "tasks.json", "accuracy.csv"])
@pytest.mark.parametrize("content", ["a: {b", "a,b\nc,d\n", None])
def test_damaged_files_are_told(name: str, content: str | None, run: Path) -> None:
    path = run / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(ArgumentError) as caught:
        evaluate(parse_evaluation(arguments(run)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["- 1", "3", "hello", "", "seed: ${", "seed: ${gone}", "seed: 1"])
def test_a_configuration_that_is_none_is_told(
    content: str, tiny: list[str], compose: Callable[..., Config], tmp_path: Path
) -> None:
    """On evaluating, on loading and on going on with the run."""
    (tmp_path / "config.yaml").write_text(content)
    RunDirectory(tmp_path).save_model({})
    goes_on = compose(*tiny, f"run.dir={tmp_path}", "resume=true")
    jobs: list[tuple[str, Callable[[], object]]] = [
        ("run", lambda: evaluate(parse_evaluation(arguments(tmp_path)))),
        ("run", lambda: hnetcl.load(tmp_path)),
        ("run.dir", lambda: train(goes_on)),
    ]
    for name, job in jobs:
        with pytest.raises(ArgumentError) as caught:
            job()
        assert str(caught.value).startswith(f"{name}={tmp_path}: config.yaml is damaged")
        assert "\n" not in str(caught.value)


def test_other_data_are_noticed(run: Path, data_root: Path, tmp_path: Path) -> None:
    tensors = load_file(data_root / "tiny.safetensors")
    tensors["test_images"][0, 0, 0, 0] += 1
    save_file(tensors, tmp_path / "tiny.safetensors")
    with pytest.raises(ArgumentError, match="the data of task 0 is not what the run was trained on: sha256 differ"):
        evaluate(parse_evaluation(arguments(run, data={"root": str(tmp_path)})))


class KilledError(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_that_dies_resumes_to_the_same_numbers(
    damaged: bool,
    run: Path,
    tiny: list[str],
    compose: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    died = tmp_path / "died"
    whole = Trainer._run_task

    def dies_in_the_last_task(self: Trainer, task: int) -> None:
        if task == 2:
            raise KilledError
        whole(self, task)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_run_task", dies_in_the_last_task)
        with pytest.raises(KilledError):
            train(compose(*tiny, f"run.dir={died}"))
    assert not (died / "metrics.json").exists()
    if damaged:
        (died / "checkpoints" / "last.safetensors").write_bytes(b"half a check")
    with pytest.raises(ArgumentError, match="holds a run already; resume=true goes on with it"):
        train(compose(*tiny, f"run.dir={died}"))
    with pytest.raises(ArgumentError, match=r"trainer.steps=31: the run to go on with has trainer.steps=30"):
        train(compose(*tiny, "trainer.steps=31", f"run.dir={died}", "resume=true"))
    train(compose(*tiny, f"run.dir={died}", "resume=true"))
    assert equal(run, died)
    train(compose(*tiny, f"run.dir={died}", "resume=true"))
    assert equal(run, died)


def test_a_run_that_dies_right_after_its_last_checkpoint_lacks_nothing(
    run: Path, tiny: list[str], compose: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = tmp_path / "died"
    whole = RunDirectory.save_checkpoint

    def dies_after_the_last(self: RunDirectory, state: dict[str, Any]) -> None:
        whole(self, state)
        if state["standing"]["done"] == 3:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save_checkpoint", dies_after_the_last)
        with pytest.raises(KilledError):
            train(compose(*tiny, f"run.dir={died}"))
    train(compose(*tiny, f"run.dir={died}", "resume=true"))
    assert equal(run, died)
    for name in FIGURES:
        assert (run / "figures" / name).read_bytes() == (died / "figures" / name).read_bytes()


def test_resume_needs_to_know_the_run(tiny: list[str], compose: Callable[..., Config]) -> None:
    with pytest.raises(ArgumentError, match=r"resume=True: needs run.dir"):
        train(compose(*tiny, "resume=true"))


def test_resume_starts_where_nothing_was_begun(
    run: Path, tiny: list[str], compose: Callable[..., Config], tmp_path: Path
) -> None:
    train(compose(*tiny, f"run.dir={tmp_path / 'new'}", "resume=true"))
    assert equal(run, tmp_path / "new")


def test_runs_of_the_same_second_get_their_own_directories(
    tiny: list[str], compose: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda *_: "now")
    paths = [train(compose(*tiny, "trainer.steps=2")) for _ in range(2)]
    assert [str(path) for path in paths] == ["outputs/split_tiny/now", "outputs/split_tiny/now_1"]


@pytest.mark.slow
def test_a_multirun_leaves_what_single_runs_leave(tiny: list[str], tmp_path: Path) -> None:
    sweep = script(
        "train", "-m", *tiny, "bn=real,quaternion", "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}", cwd=tmp_path
    )
    assert sweep.returncode == 0, sweep.stderr
    jobs = [("real", 0), ("real", 1), ("quaternion", 0), ("quaternion", 1)]
    for number, (bn, seed) in enumerate(jobs):
        assert all((tmp_path / "sweep" / str(number) / name).exists() for name in FILES)
        if number in (1, 2):
            single = tmp_path / f"{bn}{seed}"
            process = script("train", *tiny, f"bn={bn}", f"seed={seed}", f"run.dir={single}", cwd=tmp_path)
            assert process.returncode == 0, process.stderr
            assert equal(tmp_path / "sweep" / str(number), single)
            assert (single / "train.log").read_text().count("task 0 of 3") == 1
            [named] = (single / "tensorboard").iterdir()
            assert named.name.startswith(f"bn={bn},seed={seed},task.dataset=tiny,")
            assert len(named.name) <= 120
        [shown] = (tmp_path / "sweep" / str(number) / "tensorboard").iterdir()
        assert shown.name.startswith(f"bn={bn},seed={seed},")
        assert next(shown.glob("events*")).stat().st_size
    again = script(
        "train", "-m", *tiny, "bn=real", "seed=0", f"hydra.sweep.dir={tmp_path / 'sweep'}", "resume=true", cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr
    assert len(list((tmp_path / "sweep").rglob("tensorboard/*"))) == 4


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["task=split_mnits"],
            "task=split_mnits: did you mean split_mnist? allowed: fourier_mnist, gaussians, image_folder, mixed",
        ),
        (
            ["net.hiden=[4]"],
            "net.hiden=[4]: there is no such key; did you mean net.hidden? allowed: net.algebra, net.hidden",
        ),
        (["bn=quaternion", "net.hidden=[10,10]"], "net.hidden=[10, 10]: every width must be a multiple of 4 (quaternion)"),
        (["device=cuda:99"], "device=cuda:99: not available on this machine; allowed: auto, cpu"),
        (["task.num_tasks=7"], "task.num_tasks=7: must be from 1 to 5: mnist has 10 classes, 2 a task"),
        (["hnet.compression=0.0001"], "hnet.compression=0.0001: the smallest ratio that a chunk size reaches is"),
        (["foo==1"], "Error parsing override 'foo==1'"),
        (["data.root=."], "data.root="),
    ],
)
def test_bad_input_ends_with_one_line_and_leaves_nothing(overrides: list[str], line: str, tmp_path: Path) -> None:
    (tmp_path / "mnist.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{}")
    process = script("train", *overrides, cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.startswith(line)
    assert process.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mnist.safetensors"]


@pytest.mark.slow
def test_a_faulty_job_does_not_stop_a_sweep(tiny: list[str], tmp_path: Path) -> None:
    process = script("train", "-m", *tiny, "trainer.steps=2,-2,3", f"hydra.sweep.dir={tmp_path}", cwd=tmp_path)
    assert process.returncode == 2
    assert "trainer.steps=-2: must be at least 1" in process.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["0", "2"]


@pytest.mark.parametrize(("flag", "text"), [("--help", "hnetcl evaluate run=DIR"), ("--cfg=job", "task:")])
def test_help_needs_no_torch(flag: str, text: str, tmp_path: Path) -> None:
    code = (
        "import runpy, sys\nsys.modules['torch'] = None\n"
        f"sys.argv = ['train.py', *{flag.split('=')!r}]\nrunpy.run_path({str(CONF.parent / 'scripts' / 'train.py')!r}, "
        "run_name='__main__')"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert text in process.stdout
