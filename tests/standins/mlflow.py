"""Stands for MLflow where that is not installed: writes down what is called, a line of JSON for each call."""

import json
from pathlib import Path
from typing import Any


def _write(name: str, *values: Any) -> None:
    with Path("mlflow.jsonl").open("a", encoding="utf-8") as file:
        print(json.dumps([name, *values], allow_nan=False), file=file)


def set_tracking_uri(uri: str) -> None:
    _write("set_tracking_uri", uri)


def set_experiment(name: str) -> None:
    _write("set_experiment", name)


def start_run(*, run_name: str) -> None:
    _write("start_run", run_name)


def log_params(params: dict[str, Any]) -> None:
    _write("log_params", params)


def log_metrics(metrics: dict[str, float], step: int | None = None) -> None:
    _write("log_metrics", metrics, step)


def end_run() -> None:
    _write("end_run")
