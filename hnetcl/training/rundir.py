"""The files of a run: what they hold, and whether they are what the run wrote."""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from hnetcl.files import flush_folder, read_file, read_text, require_plain, write_file, writing
from hnetcl.training.lock import Lock
from hnetcl.training.sealed import digest, packed, sealed, unpacked, unsealed


class RunDirectory:
    """A run's directory.

    All that is read back can tell damage: checkpoints and model.safetensors hold a checksum of themselves and of the texts
    beside them, the configuration among these.

    Args:
        path: of the directory; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.tasks = self.path / "tasks.json"
        self.accuracy = self.path / "accuracy.csv"
        self.classes = self.path / "classes.csv"
        self.metrics = self.path / "metrics.json"
        self.statistics = self.path / "statistics.json"
        self.model = self.path / "model.safetensors"
        self.checkpoints = self.path / "checkpoints"
        self.checkpoint = self.checkpoints / "last.safetensors"
        self.previous = self.checkpoints / "previous.safetensors"
        self.tensorboard = self.path / "tensorboard"
        self.figures = self.path / "figures"
        self.log = self.path / "train.log"
        self.lock = self.path / ".lock"

        self._claims = 0
        self._lock: Lock | None = None

    def holds_run(self) -> bool:
        """Whether a run was started here."""
        return _is_there(self.config)

    def is_finished(self) -> bool:
        """Whether a run was finished here: the model is written last."""
        return _is_there(self.model)

    @contextmanager
    def claimed(self) -> Iterator[bool]:
        """Within, no other process may claim the directory, which is made where it is missing. Can be entered again inside.

        Returns:
            Whether the file system can keep others out.

        Raises:
            ArgumentError: another process holds it; says which.
            StorageError: it can't be made or written.
        """
        if self._lock is None:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.lock)
        self._claims += 1
        try:
            yield self._lock.held
        finally:
            self._claims -= 1
            if not self._claims:
                self._lock.release()
                self._lock = None

    def has_checkpoint(self) -> bool:
        """Whether there is a state to go on from, whole or not."""
        return any(map(_is_there, (self.checkpoint, self.previous)))

    def require_plain(self) -> None:
        """Refuses links, pipes and the like where a run writes, folders in place of files, and files in place of folders.

        Raises:
            ValueError: names the first such thing.
        """
        folders = (self.checkpoints, self.tensorboard, self.figures)
        for path in (each for each in vars(self).values() if isinstance(each, Path) and each != self.path):
            require_plain(path, folder=path in folders)

    def create(self) -> None:
        """Makes the directories.

        Raises:
            StorageError: one can't be made.
        """
        for folder in (self.path, self.checkpoints, self.tensorboard, self.figures):
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)

    def write_text(self, path: Path, text: str) -> None:
        """Writes a file whole or not at all."""
        write_file(path, text.encode())

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

    def read_tasks(self) -> list[dict[str, Any]]:
        """What tasks.json says of each task.

        Raises:
            ValueError: the file is missing or damaged, or of a version that did not store how pixels are standardized.
        """
        try:
            tasks: list[dict[str, Any]] = self._read_json(self.tasks)["tasks"]
        except (KeyError, TypeError):
            tasks = []
        if not isinstance(tasks, list) or not tasks or not all(isinstance(task, dict) for task in tasks):
            raise ValueError(f"{self.tasks.name} is damaged (no list of tasks)")
        if not all({"mean", "std", "shape", "classes"} <= task.keys() for task in tasks):
            lack = f"{self.tasks.name} holds no mean and standard deviation of the pixels"
            raise ValueError(f"{lack}: an earlier version wrote it, which took them from other images; train the run again")
        return tasks

    def read_environment(self) -> list[dict[str, Any]]:
        """What environment.json says of each time that the run was started.

        Raises:
            ValueError: the file is damaged.
        """
        if not self.environment.exists():
            return []
        starts = self._read_json(self.environment)
        if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
            raise ValueError(f"{self.environment.name} is damaged (no list of starts)")
        return starts

    def read_accuracy(self) -> list[list[float]]:
        """The rows of R that `write_accuracy` wrote, the untrained model's first; NaN where a task was not evaluated.

        Raises:
            ValueError: the file is missing or damaged.
        """
        try:
            header, *rows = list(csv.reader(io.StringIO(read_text(self.accuracy)))) or [[]]
            values = [[float(value) if value else math.nan for value in row[1:]] for row in rows]
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{self.accuracy.name} is missing or damaged ({_told(error)})") from error
        if not values or any(len(row) != len(header) - 1 for row in values):
            raise ValueError(f"{self.accuracy.name} is damaged (rows are missing or incomplete)")
        if any(value < 0 or value > 1 for row in values for value in row):
            raise ValueError(f"{self.accuracy.name} is damaged (accuracies lie between 0 and 1)")
        return values

    def read_metrics(self) -> dict[str, float]:
        """What metrics.json holds; NaN where the run did not measure what a metric takes.

        Raises:
            ValueError: the file is missing or damaged.
        """
        values = self._read_json(self.metrics)
        if not isinstance(values, dict) or not values or not all(map(_is_number, values.values())):
            raise ValueError(f"{self.metrics.name} is damaged (no numbers by name)")
        return {name: math.nan if value is None else value for name, value in values.items()}

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Keeps the newest state and the one before.

        A damaged file never takes the place of the one before.

        Args:
            state: nested dicts, lists and tuples of tensors and plain values.

        Raises:
            TypeError: the state holds anything else.
            StorageError: it can't be written; what was there is still there.
        """
        tensors, structure = packed(state)
        facts = {"run": self._digests((self.config, self.tasks)), "state": json.dumps(structure)}
        new = self.checkpoint.with_name("new.safetensors")
        write_file(new, sealed(tensors, facts))
        with writing(self.checkpoint):
            if self._is_whole(self.checkpoint):
                os.replace(self.checkpoint, self.previous)
            os.replace(new, self.checkpoint)
            flush_folder(self.checkpoints)

    def load_checkpoint(self, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any] | None:
        """The newest state that is whole, or None where there are no checkpoints.

        Args:
            tell: is told of a damaged one that is left out.

        Raises:
            ValueError: there are checkpoints, but all are damaged or of another run; names them and what is wrong.
        """
        if not self.has_checkpoint():
            if old := sorted(self.checkpoints.glob("*.pt")):
                raise ValueError(f"{old[0].relative_to(self.path)} is of an earlier version of hnetcl; train the run again")
            return None
        faults = []
        for path in (self.checkpoint, self.previous):
            try:
                state = self._read_checkpoint(path)
            except ValueError as error:
                faults.append(str(error))
                continue
            if faults:
                tell(f"{faults[0]}; goes on from {path.relative_to(self.path)}, the one before")
            return state
        raise ValueError(f"{'; '.join(faults)}; to begin anew, remove the folder {self.checkpoints.name}")

    def save_model(self, tensors: dict[str, Tensor]) -> None:
        """Writes model.safetensors, with checksums of the texts: it comes last, and the run is finished."""
        texts = (self.config, self.tasks, self.accuracy, self.classes, self.statistics, self.metrics, self.environment)
        write_file(self.model, sealed(tensors, {"run": self._digests(texts)}))

    def load_model(self) -> dict[str, Tensor]:
        """The tensors of model.safetensors, once all files of the run that are read back have been found whole.

        Raises:
            ValueError: a file is missing, damaged, or of another run; named.
        """
        tensors, facts = self._unsealed(self.model)
        self._check_texts(self.model, facts)
        return tensors

    def _read_checkpoint(self, path: Path) -> dict[str, Any]:
        tensors, facts = self._unsealed(path)
        self._check_texts(path, facts)
        try:
            state = unpacked(tensors, json.loads(facts["state"]))
            if not isinstance(state, dict):
                raise ValueError("holds no state")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path.relative_to(self.path)} can't be used ({_told(error)})") from None
        return state

    def _unsealed(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        content = read_file(path)
        try:
            return unsealed(content)
        except ValueError as error:
            raise ValueError(f"{path.relative_to(self.path)} {error}") from None

    def _is_whole(self, path: Path) -> bool:
        try:
            self._unsealed(path)
        except ValueError:
            return False
        return True

    def _check_texts(self, path: Path, facts: dict[str, Any]) -> None:
        """The texts must be those that a file of tensors was written with."""
        known = facts.get("run")
        name = path.relative_to(self.path)
        if not isinstance(known, dict) or not all(isinstance(each, str) and Path(each).name == each for each in known):
            raise ValueError(f"{name} is damaged (which run it belongs to)")
        found = self._digests(self.path / each for each in known)
        other = [each for each in known if found.get(each) != known[each]]
        if len(other) > 1 and self.config.name in other:
            raise ValueError(f"{name} is of another run: it was not written with this {' and '.join(other)}")
        if other:
            read_file(self.path / other[0])  # missing, or not to be read
            raise ValueError(f"{other[0]} is damaged, or of another run: {name} was written with another")

    def _digests(self, paths: Iterable[Path]) -> dict[str, str]:
        """The checksums of files, by name; those that can't be read are left out."""
        found = {}
        for path in paths:
            try:
                found[path.name] = digest(read_file(path))
            except ValueError:
                continue
        return found

    def _read_json(self, path: Path) -> Any:
        try:
            return json.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            text = str(error)
            raise ValueError(text if path.name in text else f"{path.name} is damaged ({_told(error)})") from None


def _is_there(path: Path) -> bool:
    """Whether something lies there, be it a link that leads nowhere.

    Raises:
        OSError: that can't be known.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_number(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _told(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _cells(values: Tensor) -> list[float | str]:
    return ["" if math.isnan(value) else value for value in values.tolist()]


def _finite(value: Any) -> Any:
    """The same with None in place of values that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
