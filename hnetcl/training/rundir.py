"""The files of a run: where they lie, and how they are written so that a run which dies leaves none of them half."""

import csv
import io
import json
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor


class RunDirectory:
    """A run's directory.

    Args:
        path: of the directory; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.tasks = self.path / "tasks.json"
        self.accuracy = self.path / "accuracy.csv"
        self.metrics = self.path / "metrics.json"
        self.statistics = self.path / "statistics.json"
        self.model = self.path / "model.safetensors"
        self.checkpoint = self.path / "checkpoints" / "last.pt"
        self.previous = self.path / "checkpoints" / "previous.pt"
        self.tensorboard = self.path / "tensorboard"
        self.figures = self.path / "figures"
        self.log = self.path / "train.log"

    def holds_run(self) -> bool:
        """Whether a run was started here."""
        return self.config.exists()

    def create(self) -> None:
        """Makes the directories."""
        for folder in (self.path, self.checkpoint.parent, self.tensorboard, self.figures):
            folder.mkdir(parents=True, exist_ok=True)

    def write_text(self, path: Path, text: str) -> None:
        """Writes a file whole or not at all."""
        _replace(path, text.encode())

    def write_json(self, path: Path, value: Any) -> None:
        """Writes plain values; null stands for values that are not finite, for JSON has none."""
        self.write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")

    def write_accuracy(self, matrix: Tensor, untrained: Tensor) -> None:
        """R as CSV: a header, the row `init` of the untrained model, then a row per trained task.

        Cells of tasks that were not evaluated are empty.
        """
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trained", *(f"task_{j}" for j in range(len(untrained)))])
        writer.writerow(["init", *_cells(untrained)])
        writer.writerows([i, *_cells(row)] for i, row in enumerate(matrix) if not row.isnan().all())
        self.write_text(self.accuracy, file.getvalue())

    def write_statistics(self, distances: dict[str, Tensor], misfits: dict[str, Tensor]) -> None:
        """What `TaskEnd` tells of the batch-norm layers' statistics, as JSON; null where there is no value yet."""
        tables = {"distances": distances, "misfits": misfits}
        plain = {key: {name: values.tolist() for name, values in table.items()} for key, table in tables.items()}
        self.write_json(self.statistics, plain)

    def read_text(self, path: Path) -> str:
        """A file of the run.

        Raises:
            ValueError: it is missing or not text.
        """
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path.name} is missing or damaged ({error})") from error

    def read_tasks(self) -> list[dict[str, Any]]:
        """What tasks.json says of each task.

        Raises:
            ValueError: the file is missing or damaged, or of a version that did not store how pixels are standardized.
        """
        text = self.read_text(self.tasks)
        try:
            tasks: list[dict[str, Any]] = [dict(task) for task in json.loads(text)["tasks"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.tasks.name} is damaged ({error})") from error
        if not all({"mean", "std", "shape", "classes"} <= task.keys() for task in tasks):
            lack = f"{self.tasks.name} holds no mean and standard deviation of the pixels"
            raise ValueError(f"{lack}: an earlier version wrote it, which took them from other images; train the run again")
        return tasks

    def read_environment(self) -> list[dict[str, Any]]:
        """What environment.json says of each time that the run was started; nothing where the file is missing or damaged."""
        try:
            starts = json.loads(self.read_text(self.environment))
        except ValueError:
            return []
        return starts if isinstance(starts, list) else []

    def read_accuracy(self) -> list[list[float]]:
        """The rows of R that `write_accuracy` wrote, the untrained model's first; NaN where a task was not evaluated.

        Raises:
            ValueError: the file is missing or damaged.
        """
        header, *rows = list(csv.reader(io.StringIO(self.read_text(self.accuracy)))) or [[]]
        try:
            values = [[float(value) if value else math.nan for value in row[1:]] for row in rows]
        except ValueError as error:
            raise ValueError(f"{self.accuracy.name} is damaged ({error})") from error
        if not values or any(len(row) != len(header) - 1 for row in values):
            raise ValueError(f"{self.accuracy.name} is damaged (rows are missing or incomplete)")
        return values

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Keeps the newest state and the one before."""
        file = io.BytesIO()
        torch.save(state, file)
        if self.checkpoint.exists():
            os.replace(self.checkpoint, self.previous)
        _replace(self.checkpoint, file.getvalue())

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest state that can be read, or None where no task was finished."""
        for path in (self.checkpoint, self.previous):
            if _is_whole(path):
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                return state
        return None

    def save_model(self, tensors: dict[str, Tensor]) -> None:
        """Writes model.safetensors."""
        _replace(self.model, save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}))

    def load_model(self) -> dict[str, Tensor]:
        """The tensors of model.safetensors.

        Raises:
            ValueError: the file is missing or damaged.
        """
        try:
            return load_file(self.model)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self.model.name} is missing or damaged ({error})") from error


def _cells(values: Tensor) -> list[float | str]:
    return ["" if math.isnan(value) else value for value in values.tolist()]


def _finite(value: Any) -> Any:
    """The same with None in place of values that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint is there and undamaged; torch writes zip files, which carry checksums."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return file.testzip() is None


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
