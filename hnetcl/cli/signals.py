"""Signals that ask a run to stop."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


class Signals:
    """Within, signals are noted, for the run to stop where it can go on again. A second Ctrl-C raises KeyboardInterrupt.

    Signals that the process ignores, as under nohup, stay ignored. Outside of the main thread nothing changes.

    Attributes:
        got: the first signal, or None.
    """

    def __init__(self) -> None:
        self.got: signal.Signals | None = None
        self.before: dict[signal.Signals, Any] = {}

    def asked(self) -> bool:
        """Whether the run is to stop."""
        return self.got is not None

    def pass_on(self) -> None:
        """After the end: calls what would have handled the signal, where that is another program's own, such as submitit's."""
        handler = self.before[self.got] if self.got else None
        if callable(handler) and handler is not signal.default_int_handler:
            handler(self.got, None)

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
