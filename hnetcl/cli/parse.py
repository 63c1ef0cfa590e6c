"""Composed YAML -> Config, with one line for whatever is wrong."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hnetcl.config import GROUPS, Checked, Config, EvaluationConfig, EvaluationSettings, Settings
from hnetcl.errors import ArgumentError, nearest, one_of


def parse(composed: Any) -> Config:
    """Checks the configuration of a run and makes it an object.

    Args:
        composed: what Hydra composed, or what a run's config.yaml holds.

    Raises:
        ArgumentError: a key that is unknown or missing, a value of the wrong type or out of bounds.
    """
    return Config(**_fields(to_plain(composed), Settings, list(GROUPS)))


def parse_evaluation(composed: Any) -> EvaluationConfig:
    """The same for the arguments of an evaluation."""
    return EvaluationConfig(**_fields(to_plain(composed), EvaluationSettings, ["data"]))


def _fields(values: dict[str, Any], scalars: type[Checked], groups: list[str]) -> dict[str, Any]:
    """The checked fields of a root: its groups, and the scalars beside them."""
    plain = _object(scalars, {key: value for key, value in values.items() if key not in groups}, "", groups)
    missing = [group for group in groups if group not in values]
    if missing:
        raise ArgumentError(missing[0], None, "is missing")
    return {**vars(plain), **{group: _group(group, values[group]) for group in groups}}


def to_plain(composed: Any) -> dict[str, Any]:
    """Nested dicts and lists, with all references resolved."""
    config = composed if isinstance(composed, DictConfig) else OmegaConf.create(dict(composed))
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ArgumentError(error.full_key or "?", "?", _first_line(error)) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _group(group: str, values: Any) -> Checked:
    schema = GROUPS[group]
    if not isinstance(values, dict):
        raise ArgumentError(group, values, "must be a group of values")
    if isinstance(schema, dict):
        name = values.get("name")
        if name not in schema:
            raise one_of(f"{group}.name", name, schema)
        schema = schema[name]
    made: Checked = _object(schema, values, group)
    return made


def _object(schema: type[Checked], values: dict[str, Any], group: str, beside: Sequence[str] = ()) -> Any:
    """An object of the schema; `beside` are the keys of the same level that other schemas have."""
    prefix = f"{group}." if group else ""
    typed, names = OmegaConf.structured(schema), schema.__dataclass_fields__
    for key, value in values.items():
        if key not in names:
            raise ArgumentError(prefix + key, value, f"there is no such key; {nearest(key, [*names, *beside])}")
        try:
            typed[key] = value
        except OmegaConfBaseException as error:
            kind = names[key].type
            wanted = kind.__name__ if isinstance(kind, type) and "[" not in str(kind) else kind
            raise ArgumentError(prefix + key, value, f"must be of type {wanted}") from error
    for key in names:
        if OmegaConf.is_missing(typed, key):
            raise ArgumentError(prefix + key, None, "is missing")
    try:
        return OmegaConf.to_object(typed)
    except ArgumentError as error:
        raise error.within(group) if group else error from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
