"""What can be chosen, for tests that go through all of it."""

from typing import Any

from hnetcl.registry import options, words


def allowed(kind: str, name: str, key: str) -> list[Any]:
    """The words that an option of a part takes."""
    return list(words(options(kind, name)[key].type))
