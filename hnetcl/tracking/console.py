"""Where lines go: the screen and a run's log file."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from hnetcl.errors import ArgumentError, DivergedError, StorageError
from hnetcl.files import write_file, writing

__all__ = ["Console", "drop_lines", "log_to", "task_line"]

logger = logging.getLogger("hnetcl")


class _ConsoleHandler(logging.Handler):
    """Prints through rich, so that lines and a progress bar don't overwrite each other."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(self.format(record), markup=False, emoji=False, highlight=False, soft_wrap=True)


class _FileHandler(logging.FileHandler):
    """Appends to a file, which is opened for each line, so that it can be replaced in between. A full disk ends the run."""

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        self.close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        with suppress(OSError):
            self.close()
        with writing(Path(self.baseFilename)):
            raise error


@contextmanager
def log_to(console: Console, path: Path) -> Iterator[logging.Logger]:
    """Within, the package's log goes to the console, and with the time in front to a file (appended).

    Raises:
        StorageError: the file can't be written.
    """
    screen, file = _ConsoleHandler(console), _FileHandler(path, encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False  # in a multirun Hydra logs to the screen as well
    for handler in (screen, file):
        logger.addHandler(handler)
    try:
        yield logger
    except BaseException as error:
        # The screen shows what ended the run anyway; the file is all that remains of a job on a cluster.
        logger.removeHandler(screen)
        with suppress(StorageError):  # of the disk that may have ended it
            if isinstance(error, ArgumentError | DivergedError | StorageError):
                logger.error(f"the run ended early: {error}")
            elif not isinstance(error, SystemExit):  # what stops the process has said why
                logger.exception("the run ended early")
        raise
    finally:
        logger.setLevel(before[0])
        logger.propagate = before[1]
        for handler in (screen, file):
            logger.removeHandler(handler)


def task_line(task: int, tasks: int, text: str) -> str:
    """The line of a task that is done."""
    return f"task {task} of {tasks}: {text}"


def drop_lines(path: Path, done: int) -> None:
    """Drops from a log the lines of tasks that will be told again, because their checkpoint was not written.

    Args:
        done: tasks that will not.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    told = [re.match(r"\S+ \S+ task (\d+) of \d+: ", line) for line in lines]
    kept = [line for line, match in zip(lines, told, strict=True) if match is None or int(match[1]) < done]
    if kept != lines:
        write_file(path, "".join(kept).encode())
