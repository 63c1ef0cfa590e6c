"""Signals that ask a run to stop."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from hnetcl.training import Stop

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)

logger = logging.getLogger("hnetcl")


class Signals(Stop):
    """Within, signals are noted, for the run to stop where it can go on again. A second Ctrl-C raises KeyboardInterrupt.

    Signals that the process ignores, as under nohup, stay ignored. Those that another program handles, such as submitit, are
    handed to it once the checkpoint is written: it puts the job into the queue again, or lets the run go on. Outside of the
    main thread nothing changes.

    Attributes:
        got: the first signal, or None.
        goes_on: the command that goes on with the run.
    """

    def __init__(self) -> None:
        self.got: signal.Signals | None = None
        self.goes_on = ""
        self.before: dict[signal.Signals, Any] = {}

    def asked(self) -> bool:
        return self.got is not None

    def ends(self, where: str) -> bool:
        assert self.got is not None
        handler = self.before[self.got]
        if not callable(handler) or handler is signal.default_int_handler:
            logger.info(f"stopped by {self.got.name} {where}; this goes on: {self.goes_on}")
            return True
        logger.info(f"{self.got.name} {where}, where the run can go on; what started the job decides")
        handler(self.got, None)
        self.got = None
        return False

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):
                    self.before[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self.got:
            raise KeyboardInterrupt
        self.got = self.got or signal.Signals(number)
