"""The streams of the command line: neither a reader that goes away nor a narrow encoding ends a job."""

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


_faults: list[str] = []  # of what could not be written


class _Patient(io.FileIO):
    """A file whose reader may go away, or whose disk may be full: what is written then is lost, and the job goes on."""

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            pass
        except OSError as error:
            _faults.append(error.strerror or "?")
        return memoryview(data).nbytes


def lost_output() -> str | None:
    """What was wrong, in one line, where output was lost that somebody waits for."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return f"stdout can't be written ({_faults[0]}): what was printed is lost, files are not" if _faults else None


def make_patient() -> None:
    """Makes stdout and stderr go on where they would raise: `| head -1`, a closed stream, a letter that ASCII lacks."""
    sys.stdout, sys.stderr = _patient(sys.stdout), _patient(sys.stderr)


def _patient(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed by who started the process
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper) or isinstance(getattr(stream.buffer, "raw", None), _Patient):
        return stream
    stream.flush()
    raw = _Patient(stream.fileno(), "w", closefd=False)
    line_buffering = stream.line_buffering or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=line_buffering)
