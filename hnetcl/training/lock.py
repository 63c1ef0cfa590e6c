"""One process a run."""

import fcntl
import os
import socket
import time
from pathlib import Path

from hnetcl.errors import ArgumentError
from hnetcl.files import writing

WAIT = 1.0  # seconds that one who has just taken a lock may need to say who it is


class Lock:
    """The right to write in a directory, of one process at a time. It ends with the process, however that ends.

    Args:
        path: of the lock's file, which lies there as long as the lock is held.

    Raises:
        ArgumentError: another process holds it; says which.
        StorageError: the file can't be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held = True
        while True:
            with writing(path):
                self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = self._holder()
                os.close(self.descriptor)
                if holder is None:  # it has let go in the meantime
                    continue
                raise ArgumentError("run.dir", path.parent, f"is in use by {holder}") from None
            except OSError:  # a file system without locks
                self.held = False
            if self._is_there():
                break
            os.close(self.descriptor)  # the file was removed by who held it before
        with writing(path):
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, _me().encode(), 0)

    def release(self) -> None:
        """Lets go, and removes the file."""
        if self.descriptor >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = -1

    def _is_there(self) -> bool:
        """Whether the file that is open is the one that others find."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _holder(self) -> str | None:
        """Who holds the lock; None where nobody does any more."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            text = os.pread(self.descriptor, 1000, 0).decode(errors="replace").strip()
            if text:
                return text
            if not self._is_there():
                return None
            time.sleep(0.01)
        return "another process"


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
