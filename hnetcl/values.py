"""Values that a user gives, checked against the types and bounds that signatures name."""

from collections import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import Parameter
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types

from hnetcl.errors import ArgumentError, nearest, one_of

Widths = Annotated[Sequence[Annotated[int, annotated_types.Ge(1)]], annotated_types.Len(1)]
"""The type of a list of layers' widths."""


@dataclass(frozen=True)
class Option:
    """A configuration key.

    Args:
        type: as it is annotated; Any where it is not.
        default: `Parameter.empty` where a value must be given.
    """

    type: Any
    default: Any = Parameter.empty

    @property
    def required(self) -> bool:
        return self.default is Parameter.empty


Options = Mapping[str, Option]


def checked(
    values: Mapping[str, Any], known: Options, prefix: str = "", beside: Iterable[str] = (), note: str = ""
) -> dict[str, Any]:
    """The values, with defaults for those that are left out.

    Args:
        prefix: of the keys, for messages.
        beside: further keys of the same level, for messages.
        note: behind the allowed keys, for messages.

    Raises:
        ArgumentError: an unknown key, a missing one, a value of another type or out of bounds.
    """
    for key, value in values.items():
        if key not in known:
            raise ArgumentError(prefix + key, value, f"there is no such key; {nearest(key, [*known, *beside], prefix)}{note}")
    found = {}
    for key, option in known.items():
        if key in values:
            value = values[key]
            if type(value) in (int, float) and _shown(option.type) in ("str", "str | None"):
                value = str(value)  # a name or path of digits
            found[key] = check_value(prefix + key, value, option.type)
        elif option.required:
            raise ArgumentError(prefix + key, None, "is missing")
        else:
            found[key] = list(option.default) if isinstance(option.default, tuple) else option.default
    return found


def check_value(key: str, value: Any, wanted: Any) -> Any:
    """The value, if it is of that type and within its bounds.

    Raises:
        ArgumentError: it is not.
    """
    from pydantic import ValidationError

    if wanted is Any:
        return value
    try:
        made = _adapter(wanted).validate_python(value)
    except ValidationError as error:
        told = [each.documentation for each in getattr(wanted, "__metadata__", ()) if isinstance(each, annotated_types.DocInfo)]
        if told:
            raise ArgumentError(key, value, f"must be {told[0]}") from None
        faults = error.errors(include_url=False)
        kinds = {fault["type"] for fault in faults}
        allowed = words(wanted)
        if (
            allowed
            and kinds <= {"literal_error", "list_type", "sequence_str", "is_instance_of"}
            and not isinstance(value, list)
        ):
            raise one_of(key, value, [*allowed, *(["a list"] if "list_type" in kinds else [])]) from None
        inside = all(type(place) is int for fault in faults for place in fault["loc"][-1:] or [""])
        where = "every value must be" if inside else "must be"
        if "finite_number" in kinds:
            bounds = " and ".join(_bounds(wanted))
            raise ArgumentError(key, value, f"{where} a finite number{bounds and f', {bounds}'}") from None
        if kinds <= {"greater_than_equal", "greater_than", "less_than_equal", "less_than"}:
            raise ArgumentError(key, value, f"{where} {' and '.join(_bounds(wanted))}") from None
        if kinds == {"too_short"}:
            raise ArgumentError(key, value, "must not be empty") from None
        if allowed and kinds == {"literal_error"}:
            raise ArgumentError(key, value, f"every value must be one of {', '.join(allowed)}") from None
        raise ArgumentError(key, value, f"must be of type {_shown(wanted)}") from None
    return list(made) if isinstance(made, tuple) else made


@lru_cache(1024)
def _adapter(wanted: Any) -> Any:
    """pydantic's check of a type; nothing is converted, but a whole number where a real one is wanted."""
    from pydantic import ConfigDict, TypeAdapter  # where it is needed, for it takes a tenth of a second to import

    return TypeAdapter(wanted, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True))


def words(wanted: Any) -> list[str]:
    """The words that a type allows."""
    if get_origin(wanted) is Literal:
        return [str(word) for word in get_args(wanted)]
    return [word for each in get_args(wanted) if not isinstance(each, str) for word in words(each)]


def _bounds(wanted: Any) -> list[str]:
    """The bounds in a type, in words."""
    found = []
    for each in getattr(wanted, "__metadata__", ()):
        for kind, text in (("ge", "at least"), ("gt", "greater than"), ("le", "at most"), ("lt", "less than")):
            if hasattr(each, kind):
                found.append(f"{text} {_number(getattr(each, kind))}")
    return found + [text for each in get_args(wanted) if not isinstance(each, str) for text in _bounds(each)]


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shown(wanted: Any) -> str:
    """A type as a user reads it."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        return _shown(inner[0])
    if origin is Literal:
        return "str"
    if origin is abc.Sequence:
        return f"list[{_shown(inner[0])}]"
    if inner:
        separator = ", " if origin in (dict, list, tuple) else " | "
        text = separator.join(dict.fromkeys(map(_shown, inner)))
        return f"{origin.__name__}[{text}]" if origin in (dict, list, tuple) else text
    return "None" if wanted is type(None) else getattr(wanted, "__name__", str(wanted))
