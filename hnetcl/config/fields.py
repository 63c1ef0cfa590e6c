"""What a schema is made of: fields with bounds, and classes that check them."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from hnetcl.errors import ArgumentError, nearest, one_of

Check = Callable[[Any], str]


def number(*, least: float = -math.inf, above: float = -math.inf, most: float = math.inf) -> Any:
    """A field for a finite number with bounds."""
    rules = [(least, f"at least {least:g}"), (above, f"greater than {above:g}"), (most, f"at most {most:g}")]
    text = " and ".join(rule for bound, rule in rules if math.isfinite(bound)) or "finite"

    def check(value: float) -> str:
        good = math.isfinite(value) and least <= value <= most and value > above
        return "" if good else f"must be {text}" if math.isfinite(value) else f"must be a finite number, {text}"

    return field(metadata={"check": check})


def choice(options: tuple[str, ...]) -> Any:
    """A field for one of some names."""
    return field(metadata={"options": options})


def names(options: tuple[str, ...]) -> Any:
    """A field for a list of some of these names, all of them where it is left out."""

    def check(value: list[str]) -> str:
        unknown = [name for name in value if name not in options]
        return f"{unknown[0]}: {nearest(unknown[0], options)}" if unknown else ""

    return field(default_factory=lambda: list(options), metadata={"check": check})


def widths() -> Any:
    """A field for a list of positive widths."""
    return field(
        metadata={"check": lambda value: "" if value and min(value) >= 1 else "must be a list of widths of at least 1"}
    )


def parameter_names() -> Any:
    """A field for one word, or a list of patterns of parameters' names."""

    def check(value: Any) -> str:
        words = value if isinstance(value, list) else [value]
        good = words and all(isinstance(word, str) for word in words)
        return "" if good else "must be all, norm, or a list of patterns of parameters' names"

    return field(metadata={"check": check})


def path() -> Any:
    """A field for a path; `~` is the home directory."""
    return field(metadata={"path": True})


@dataclass(kw_only=True)
class Checked:
    """Checks its fields against their bounds; None is let through where the type names it.

    Raises:
        ArgumentError: for the first value out of bounds.
    """

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            options: tuple[str, ...] | None = f.metadata.get("options")
            check: Check | None = f.metadata.get("check")
            if value is None and f.type is not Any:
                continue
            if f.metadata.get("path"):
                setattr(self, f.name, os.path.expanduser(value))
            if options is not None and value not in options:
                raise one_of(f.name, value, options)
            fault = check(value) if check else ""
            if fault:
                raise ArgumentError(f.name, value, fault)


@dataclass(kw_only=True)
class Part(Checked):
    """A replaceable part; `name` says which dataclass of its group the YAML belongs to."""

    name: str
