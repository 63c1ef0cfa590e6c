"""Reading and writing files of directories that may be damaged, received from others, or on a disk that is full."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hnetcl.errors import StorageError

REFERENCES = "references"  # the folder of a run's bounds, in the run's own
REFUSED_JOBS = "refused.jsonl"  # in the folder of a multirun: jobs that were refused before they had a directory
LARGEST_TEXT = 2**26  # bytes; of a run of thousands of tasks the largest text has a few million


def read_file(path: Path, most: int | None = None) -> bytes:
    """The content of a file. Links are not followed, and pipes not waited for.

    Args:
        most: bytes that it may have.

    Raises:
        ValueError: it can't be read, is no regular file, or larger; named, in one line.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise ValueError(f"{path.name} is no regular file")
            if most is not None and about.st_size > most:
                raise ValueError(f"{path.name} has {about.st_size:,} bytes, more than {most:,}")
            return file.read()
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    except (OSError, MemoryError) as error:
        if path.is_symlink():
            raise ValueError(f"{path.name} is a symbolic link, which is not followed") from None
        raise ValueError(f"{path.name} can't be read ({_reason(error)})") from None


def read_text(path: Path, most: int = LARGEST_TEXT) -> str:
    """The same of text in UTF-8.

    Raises:
        ValueError: as `read_file` does; or it is not text.
    """
    try:
        return read_file(path, most).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is damaged (no UTF-8 text at byte {error.start})") from None


def write_file(path: Path, content: bytes, flush: bool = True) -> None:
    """Writes a file whole or not at all.

    Args:
        flush: to the disk, so that it outlasts a machine that loses its power.

    Raises:
        StorageError: it can't be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                if flush:
                    os.fsync(descriptor)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)  # or half a file would take the room that is lacking
            raise
        if flush:
            flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Has the disk keep what was renamed in a folder, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems can't
        pass
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within, a fault of the machine is a StorageError that names the file."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(path, _reason(error)) from error


def require_plain(path: Path, folder: bool) -> None:
    """Refuses what is neither a regular file nor a folder of such: writing there could reach outside of the folder.

    Args:
        folder: whether it must be a folder, should it be there.

    Raises:
        ValueError: names the first such thing.
    """
    if not os.path.lexists(path):
        return
    if not path.is_symlink() and path.is_dir() != folder:
        raise ValueError(f"{path.name} is {'no folder' if folder else 'a folder'}")
    inside = [Path(place, name) for place, folders, files in os.walk(path) for name in sorted([*folders, *files])]
    for each in [path, *inside]:
        mode = each.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
            raise ValueError(f"{each.relative_to(path.parent)} is {kind}; a run has files and folders of its own")


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
