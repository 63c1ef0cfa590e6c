"""What Hydra composed, as a checked configuration."""

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from hnetcl.cli.imports import import_all
from hnetcl.config import (
    Config,
    EvaluationConfig,
    ExportConfig,
    group_options,
    parse,
    parse_evaluation,
    parse_export,
)
from hnetcl.errors import ArgumentError
from hnetcl.files import read_text
from hnetcl.registry import check_value, names

LARGEST_CONFIG = 2**20  # bytes
DEEPEST = 20  # levels in a configuration


def typed_config(composed: Any, words: Sequence[str] = ()) -> Config:
    """The configuration of a run that a user types now, whose `imports` are imported: they may register parts that it names.

    Args:
        words: that were typed, or the job's own of a sweep.

    Raises:
        ArgumentError: what `import_all` and `parse` refuse.
    """
    values = _imported(composed)
    if isinstance(values.get("bn"), dict):
        values["bn"] = _of_its_part(values["bn"], {word.lstrip("+~").partition("=")[0] for word in words})
    return parse(values)


def _of_its_part(bn: dict[str, Any], typed: Set[str]) -> dict[str, Any]:
    """The bn group without what its YAML says of `bn.name=layer`, where `bn.name` means a part that has no such keys.

    What was typed, or differs from the defaults, stays, and is refused.
    """
    name = bn.get("name", "layer")
    if name not in names("bn"):
        return bn
    layer, own = group_options("bn", "layer"), group_options("bn", name)
    untold = {key for key, option in layer.items() if bn.get(key) == option.default and f"bn.{key}" not in typed}
    return {key: value for key, value in bn.items() if key in own or key not in untold}


def typed_evaluation(composed: Any) -> EvaluationConfig:
    """The same for the arguments of an evaluation."""
    return parse_evaluation(_imported(composed))


def typed_export(composed: Any) -> ExportConfig:
    """The same for the arguments of an export."""
    return parse_export(_imported(composed))


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


def saved_values(text: str) -> dict[str, Any]:
    """The values of a config.yaml that a run has written, or somebody else: what it holds is text and numbers, and is followed
    nowhere. `${oc.env:HOME}` stays these letters; aliases, which can unfold without end, and tags are refused.

    Raises:
        ValueError: it is no such file.
    """
    depth = kinds = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise ValueError("it holds an anchor or alias")
            if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None):
                raise ValueError(f"it holds a tag, {event.tag}")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            kinds += isinstance(event, yaml.MappingStartEvent)
            if depth > DEEPEST:
                raise ValueError(f"it is nested deeper than {DEEPEST} levels")
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False) if kinds else None
    except (yaml.YAMLError, OmegaConfBaseException, OSError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(values, dict) or not values:
        raise ValueError("it holds no keys")
    return {str(key): value for key, value in values.items()}


def read_config(path: Path) -> dict[str, Any]:
    """The same of a file, which may be a link or a pipe: these are refused.

    Raises:
        ValueError: as above, or it can't be read.
    """
    return saved_values(read_text(path, LARGEST_CONFIG))


def require_followed_nowhere(values: Any) -> None:
    """Refuses what Hydra would follow in a saved configuration: parts of its own, other files, references.

    Raises:
        ValueError: names it.
    """
    for key in ("hydra", "defaults"):
        if isinstance(values, dict) and key in values:
            raise ValueError(f"it holds {key}, which no run writes")
    for each in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        require_followed_nowhere(each)
    if isinstance(values, str) and "${" in values:
        raise ValueError(f"it holds a reference, {values}")
