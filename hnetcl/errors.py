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
        super().__init__(f"{name}={value}: {allowed}")
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
        super().__init__(f"{where}: {what} is not finite; a smaller optimizer.lr may help. Nothing of this task was saved")
        self.task, self.step, self.what = task, step, what

    def __reduce__(self) -> tuple[type["DivergedError"], tuple[int, int | None, str]]:
        return type(self), (self.task, self.step, self.what)  # else it could not come back from another process


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
