"""The observers of docs/tracking.md: what MLflow and Weights & Biases are told is what the run found."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, files

RECORD = """
import dataclasses, json
import hnetcl
from hnetcl.training import Observer

@hnetcl.register("observer", "record")
class Record(Observer):
    def __init__(self, directory):
        self.file = (directory.path / "steps.jsonl").open("w")
    def on_task_start(self, task, steps, steps_before):
        self.steps_before = steps_before
    def on_step(self, step):
        print(json.dumps([self.steps_before, dataclasses.asdict(step)]), file=self.file)
    def close(self):
        self.file.close()
"""


def trained(cwd: Path, tiny: list[str], *names: str) -> Path:
    """A run that these observers follow, by the command line; the page's files lie in its current directory."""
    for name, text in files(ROOT / "docs" / "tracking.md").items():
        (cwd / name).write_text(text, encoding="utf-8")
    (cwd / "record.py").write_text(RECORD)
    imports = f"imports=[{','.join(['record.py', *(f'my_{name}.py' for name in names)])}]"
    words = [*tiny, imports, f"observers=[record,{','.join(names)}]", "trainer.steps=12", "trainer.log_every=5", "run.dir=run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    told = [sys.executable, str(ROOT / "scripts" / "train.py"), *words, "trainer.evaluate=last"]
    done = subprocess.run(told, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd / "run"


def found(run: Path) -> tuple[dict[int, dict[str, float]], list[dict[str, float]], dict[str, float]]:
    """By step of the run what it logged; after each task the accuracies that were measured; the metrics that are numbers."""
    steps = {}
    for line in (run / "steps.jsonl").read_text().splitlines():
        before, step = json.loads(line)
        values = {**step["losses"], "batch_accuracy": step["accuracy"]}
        steps[before + step["step"]] = {f"{name}/task_{step['task']}": value for name, value in values.items()}
    rows = [line.split(",")[1:] for line in (run / "accuracy.csv").read_text().splitlines()[2:]]
    seen = [{f"accuracy/task_{j}": float(cell) for j, cell in enumerate(row[: i + 1]) if cell} for i, row in enumerate(rows)]
    metrics = json.loads((run / "metrics.json").read_text())
    return steps, seen, {f"metrics/{name}": value for name, value in metrics.items() if value is not None}


def calls(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_they_are_told_is_what_the_run_found(tiny: list[str], tmp_path: Path) -> None:
    for path in (ROOT / "tests" / "standins").glob("*.py"):
        shutil.copy(path, tmp_path)
    steps, seen, metrics = found(trained(tmp_path, tiny, "mlflow", "wandb"))
    assert list(steps) == [1, 6, 11, 12, 13, 18, 23, 24, 25, 30, 35, 36]
    assert steps[36].keys() == {"loss/task_2", "penalty/task_2", "batch_accuracy/task_2"}
    assert [len(row) for row in seen] == [1, 1, 3]  # trainer.evaluate=last

    uri, experiment, (_, run_name), params, *logged, end = calls(tmp_path / "mlflow.jsonl")
    assert (uri[1], experiment[1], end) == ("sqlite:///mlflow.db", "hnetcl", ["end_run"])
    assert params[1]["task.num_tasks"] == 3
    assert logged.pop()[1:] == [metrics, None]
    per_task = [(step, values) for _, values, step in logged if any(name.startswith("accuracy/") for name in values)]
    assert per_task == list(enumerate(seen, 1))
    assert [(step, values) for _, values, step in logged if (step, values) not in per_task] == list(steps.items())

    (_, project, name, folder, config, mode), *logged, summary, finish = calls(tmp_path / "wandb.jsonl")
    assert (project, name, folder, mode, finish) == ("hnetcl", run_name, "run", "offline", ["finish"])
    assert config == params[1]
    per_step = [(step, values) for _, values, step in logged if "tasks_trained" not in values]
    assert per_step == list(steps.items())
    per_task = [(step, values) for _, values, step in logged if "tasks_trained" in values]
    assert per_task == [(12 * number, {**row, "tasks_trained": number}) for number, row in enumerate(seen, 1)]
    assert summary[1] == metrics


@pytest.mark.skipif(find_spec("mlflow") is None, reason="MLflow is not installed")
def test_mlflow_itself(tiny: list[str], tmp_path: Path) -> None:
    steps, seen, metrics = found(trained(tmp_path, tiny, "mlflow"))
    code = (
        "import json, mlflow\n"
        "mlflow.set_tracking_uri('sqlite:///mlflow.db')\n"
        "run, = mlflow.search_runs(experiment_names=['hnetcl'], output_format='list')\n"
        "client = mlflow.MlflowClient()\n"
        "history = {k: [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, k)] for k in run.data.metrics}\n"
        "print(json.dumps([run.info.status, run.data.params, history]))\n"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    status, params, history = json.loads(told.stdout.splitlines()[-1])
    assert (status, params["task.num_tasks"]) == ("FINISHED", "3")
    expected: dict[str, list[list[float]]] = {name: [[0, value]] for name, value in metrics.items()}
    for step, values in [*steps.items(), *enumerate(seen, 1)]:
        for name, value in values.items():
            expected.setdefault(name, []).append([step, value])
    assert history == expected


@pytest.mark.skipif(find_spec("wandb") is None, reason="Weights & Biases is not installed")
def test_weights_and_biases_itself(tiny: list[str], tmp_path: Path) -> None:
    run = trained(tmp_path, tiny, "wandb")
    (offline,) = (run / "wandb").glob("offline-run-*")
    assert list(offline.glob("*.wandb"))
