"""The folder of an export: nothing of others is overwritten, and nothing comes into it that was not checked."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

from hnetcl.errors import ArgumentError, StorageError
from hnetcl.files import read_text, write_file, writing

DESCRIPTION = "export.json"
NETWORK = "network_sha256"


class Folder:
    """Files are written beside the folder, and come into it by `finish`, when all of them have been checked.

        with Folder(path, digest) as folder:
            folder.write("network.pt2", content)
            folder.finish(description)

    Args:
        path: of the folder; a new or empty one, or that of an earlier export of the same network, whose files are replaced.
        network: SHA-256 of the network, which the description says.

    Attributes:
        temporary: where files lie until then.
        entries: what the description says of each file written.

    Raises:
        ArgumentError: it holds something else, or can't be written.
    """

    def __init__(self, path: Path, network: str) -> None:
        self.path, self.network = path, network
        self.entries: dict[str, dict[str, Any]] = {}
        self.temporary = path.with_name(f".{path.name}.{token_hex(4)}")
        try:
            self._earlier = self._found()
            self.temporary.mkdir(parents=True)
        except OSError as error:
            raise ArgumentError("out", path, f"can't be written ({error.strerror})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)
        if isinstance(error, StorageError):
            raise ArgumentError("out", self.path, f"{Path(error.path).name} can't be written ({error.reason})") from error

    def write(self, name: str, content: bytes) -> Path:
        """Writes a file, which is not in its place yet; says where it is.

        Raises:
            ArgumentError: the folder holds a file of that name that is not of an earlier export.
            StorageError: it can't be written.
        """
        if name not in self._earlier and os.path.lexists(self.path / name):
            raise self._other(f"{name}, which no export wrote")
        write_file(self.temporary / name, content)
        self.entries[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        return self.temporary / name

    def finish(self, description: Mapping[str, Any]) -> None:
        """Puts all files into their places; a new folder is there all at once, in one that is there the description comes last.

        Raises:
            StorageError: they can't be put there.
        """
        kept = {name: entry for name, entry in self._earlier.items() if (self.path / name).is_file()}
        text = json.dumps({**description, NETWORK: self.network, "files": kept | self.entries}, indent=2, ensure_ascii=False)
        write_file(self.temporary / DESCRIPTION, f"{text}\n".encode())
        with writing(self.path):
            if not self._earlier:
                self.temporary.rename(self.path)  # onto nothing, or an empty folder
                return
            for name in (*self.entries, DESCRIPTION):
                os.replace(self.temporary / name, self.path / name)

    def _found(self) -> dict[str, dict[str, Any]]:
        """What the description of an earlier export says of its files; empty where there is none."""
        if self.path.is_symlink():
            raise self._other("a symbolic link")
        if not self.path.exists():
            return {}
        if not self.path.is_dir():
            raise self._other("a file")
        if not any(self.path.iterdir()):
            return {}
        try:
            said = json.loads(read_text(self.path / DESCRIPTION))
            files, network = said["files"], said[NETWORK]
            found = {name: dict(entry) for name, entry in files.items() if Path(name).name == name}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._other(f"files, and no {DESCRIPTION} that says they are an export's") from None
        if network != self.network:
            raise self._other("the export of another network")
        return found

    def _other(self, what: str) -> ArgumentError:
        rule = (
            f"{'holds' if self.path.is_dir() and not self.path.is_symlink() else 'is'} {what}; allowed: a new or empty folder"
        )
        return ArgumentError("out", self.path, rule)
