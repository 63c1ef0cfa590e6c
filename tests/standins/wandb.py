"""Stands for Weights & Biases where that is not installed: writes down what is called, a line of JSON for each call."""

import json
from pathlib import Path
from typing import Any


def _write(name: str, *values: Any) -> None:
    with Path("wandb.jsonl").open("a", encoding="utf-8") as file:
        print(json.dumps([name, *values], allow_nan=False), file=file)


class _Summary:
    def update(self, values: dict[str, float]) -> None:
        _write("summary", values)


class _Run:
    def __init__(self) -> None:
        self.summary, self.step = _Summary(), 0

    def log(self, values: dict[str, float], step: int) -> None:
        assert step >= self.step, "steps must not go back"
        self.step = step
        _write("log", values, step)

    def finish(self) -> None:
        _write("finish")


def init(*, project: str, name: str, dir: str, config: dict[str, Any], mode: str) -> _Run:
    _write("init", project, name, dir, config, mode)
    return _Run()
