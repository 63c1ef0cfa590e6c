"""The bounds of a run, which are trained beside it: what their configurations are."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from hnetcl.cli.call import Call
from hnetcl.config import Config, parse
from hnetcl.files import REFERENCES
from hnetcl.training import RunDirectory

SEPARATE: dict[str, Any] = {  # what separate networks are, whatever the run is
    "hnet": {"name": "direct", "per_task": ["*"], "heads": "same"},
    "head": "task",
    "active_classes": None,
    "generate": "all",
    "shared": "trained",
}


def bound_config(config: Config, name: str, run: Path | None = None) -> Config:
    """The configuration of a run's bound: the run's own, with the method `name`, and for `separate` with a network per task.

    Args:
        name: of `config.references`.
        run: the run's directory, in which the bound's lies; None where nothing is trained.

    Raises:
        ArgumentError: keys that don't go together.
    """
    values = deepcopy(config.values())
    values |= {"references": [], "method": {"name": name}}
    if name == "separate":
        values |= SEPARATE
        values["bn"]["rows"] = "task"
    if run is not None:
        directory = RunDirectory(run / REFERENCES / name)
        values["run"]["dir"] = str(directory.path)
        values["resume"] = directory.holds_run()
    return parse(values)


def bound_call(call: Call, name: str, run: Path) -> Call:
    """How a bound was called: by the run's command, which also goes on with it."""
    own = [word for word in call.overrides if word.lstrip("+").partition("=")[0] not in ("method", "references")]
    return replace(call, overrides=(*own, f"method={name}"), directory=None, run=run)
