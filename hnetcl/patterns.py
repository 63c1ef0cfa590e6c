"""Name patterns, as in a shell: how users say which parameters they mean."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from hnetcl.errors import ArgumentError

SHOWN = 12  # names in an error; a large network has hundreds


def matching(argument: str, patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that a pattern matches, in their own order.

    Raises:
        ArgumentError: a pattern of `argument` that no name matches.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            half = SHOWN // 2
            shown = names if len(names) <= SHOWN else [*names[:half], "...", *names[-half:]]
            raise ArgumentError(argument, list(patterns), f"{pattern!r} matches none of {', '.join(shown)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
