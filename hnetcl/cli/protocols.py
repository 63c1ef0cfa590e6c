"""Published protocols: what their commands mean."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from hnetcl.cli.main import CONF, add_parts, option_names
from hnetcl.cli.plain import typed_config
from hnetcl.cli.words import prepared
from hnetcl.errors import ArgumentError, one_line
from hnetcl.reporting import Claim, flat, read_claims

PUBLISHED = "published.csv"


def claims(path: str | None) -> list[Claim]:
    """Those of a file; without one, those that travel with the configurations."""
    return read_claims(CONF / PUBLISHED if path is None else Path(path).expanduser())


def wanted(claim: Claim) -> Mapping[str, Any]:
    """The configuration of a claim's command, by `group.key`."""
    return _composed(claim.protocol, claim.overrides)


@cache
def _composed(protocol: str, overrides: tuple[str, ...]) -> Mapping[str, Any]:
    words = [f"experiment={protocol}", *overrides]
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            options = option_names("config")
            add_parts(words, options)
            config = typed_config(hydra.compose("config", prepared(words, options)), words)
    except (HydraException, OmegaConfBaseException) as error:
        raise ArgumentError("published", " ".join(words), one_line(error)) from error
    finally:
        GlobalHydra.instance().clear()
    return flat(config.values())
