"""The errors that are told in one line: of a user's input, and of a training that can't go on."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class ArgumentError(ValueError):
    """An argument that can't be used, told in one line: `name=value: what is allowed`.

    Args:
        name: the argument's name, the same in Python and on the command line.
        value: what was got.
        allowed: what would have been right.
    """

    def __init__(self, name: str, value: Any, allowed: str) -> None:
        super().__init__(printable(f"{name}={value}: {allowed}"))
        self.name, self.value, self.allowed = name, value, allowed

    def __reduce__(self) -> tuple[type["ArgumentError"], tuple[str, Any, str]]:
        return type(self), (self.name, self.value, self.allowed)  # else it could not come back from another process

    def within(self, group: str) -> "ArgumentError":
        """The same error with the name of the group that the argument belongs to in front."""
        return ArgumentError(f"{group}.{self.name}", self.value, self.allowed)


class DivergedError(ArithmeticError):
    """A training that met values which are not finite, told in one line: where, what, and what may help.

    Args:
        task: the current one.
        step: from 1, within the task; None after its last.
        what: the first thing that is not finite.
    """

    def __init__(self, task: int, step: int | None, what: str) -> None:
        where = f"task {task}, after its last step" if step is None else f"task {task}, step {step}"
        super().__init__(f"{where}: {what} is not finite; a smaller optimizer.lr may help")
        self.task, self.step, self.what = task, step, what

    def __reduce__(self) -> tuple[type["DivergedError"], tuple[int, int | None, str]]:
        return type(self), (self.task, self.step, self.what)  # else it could not come back from another process


class StorageError(OSError):
    """A file of a run that can't be written because of the machine, told in one line: a full disk, a forbidden folder.

    Args:
        path: of the file.
        reason: the system's words.
    """

    def __init__(self, path: Any, reason: str) -> None:
        super().__init__(f"{path} can't be written ({reason})")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type["StorageError"], tuple[Any, str]]:
        return type(self), (self.path, self.reason)  # else it could not come back from another process


class StoppedError(Exception):
    """A training that was asked to stop, and has: what it starts again from has been written, where there is something.

    Args:
        where: it goes on, in words.
    """

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.where = where


def printable(text: str) -> str:
    """The text on one line, with what is no letter of it escaped, as in Python: file names may hold anything."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode() for each in text)


def one_of(name: str, value: Any, choices: Iterable[Any]) -> ArgumentError:
    """The error for a value outside a fixed set."""
    return ArgumentError(name, value, nearest(value, choices))


def one_line(error: BaseException) -> str:
    """The text of another library's error, without line breaks."""
    return " ".join(str(error).split())


def nearest(word: Any, choices: Iterable[Any], prefix: str = "") -> str:
    """What is allowed in place of a word, the nearest spelling first; all are shown with the prefix in front."""
    names = sorted(str(choice) for choice in choices)
    near = get_close_matches(str(word), names, n=1)
    hint = f"did you mean {prefix}{near[0]}? " if near else ""
    return f"{hint}allowed: {', '.join(prefix + name for name in names)}"
