"""What Hydra composed, as a checked configuration."""

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from hnetcl.cli.imports import import_all
from hnetcl.config import Config, EvaluationConfig, parse, parse_evaluation
from hnetcl.errors import ArgumentError
from hnetcl.registry import check_value


def typed_config(composed: Any) -> Config:
    """The configuration of a run that a user types now, whose `imports` are imported: they may register parts that it names.

    Raises:
        ArgumentError: what `import_all` and `parse` refuse.
    """
    return parse(_imported(composed))


def typed_evaluation(composed: Any) -> EvaluationConfig:
    """The same for the arguments of an evaluation."""
    return parse_evaluation(_imported(composed))


def _imported(composed: Any) -> dict[str, Any]:
    values = to_plain(composed)
    import_all(check_value("imports", values.get("imports", []), list[str]))
    return values


def to_plain(composed: Any) -> dict[str, Any]:
    """Nested dicts and lists, with all references resolved.

    Raises:
        ArgumentError: a reference that leads nowhere, or a value that must be given.
    """
    config = composed if isinstance(composed, DictConfig) else OmegaConf.create(dict(composed))
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        missing = isinstance(error, MissingMandatoryValue)
        rule = "is missing" if missing else str(error).strip().splitlines()[0]
        raise ArgumentError(error.full_key or "?", None if missing else "?", rule) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}
