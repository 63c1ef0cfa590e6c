"""Where lines go: the screen and a run's log file."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

__all__ = ["Console", "log_to"]

logger = logging.getLogger("hnetcl")


class _ConsoleHandler(logging.Handler):
    """Prints through rich, so that lines and a progress bar don't overwrite each other."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def log_to(console: Console, path: Path) -> Iterator[logging.Logger]:
    """Within, the package's log goes to the console, and with the time in front to a file (appended)."""
    screen, file = _ConsoleHandler(console), logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False  # in a multirun Hydra logs to the screen as well
    for handler in (screen, file):
        logger.addHandler(handler)
    try:
        yield logger
    except BaseException:
        # The screen shows what ended the run anyway; the file is all that remains of a job on a cluster.
        logger.removeHandler(screen)
        logger.exception("the run ended early")
        raise
    finally:
        logger.setLevel(before[0])
        logger.propagate = before[1]
        for handler in (screen, file):
            logger.removeHandler(handler)
        file.close()
