"""The command line: Hydra composes, and whatever is wrong with the input is told in one line."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hnetcl.errors import ArgumentError, DivergedError, nearest, one_line, one_of

CONF = Path(__file__).resolve().parents[2] / "conf"
USAGE_ERROR = 2
INTERRUPTED = 130
FREE = "net.options"  # its keys are the network's own; Hydra would refuse them as unknown without the ++


def main(config_name: str, job: Callable[[DictConfig], None]) -> None:
    """Runs `job` with the configuration that the command line asks for; exits with 2 and one line where that is faulty.

    In a multirun a faulty job does not keep the others from running.

    Args:
        config_name: the primary YAML in conf/.
        job: called once, or once per job of a multirun. What it raises as an ArgumentError or DivergedError is told.
    """
    faults: list[str] = []

    def tell(line: str) -> None:
        faults.append(line)
        print(line, file=sys.stderr)

    def guarded(composed: DictConfig) -> None:
        try:
            job(composed)
        except (ArgumentError, DivergedError) as error:
            tell(str(error))
            folder = job_directory()
            if folder is not None and not any(Path(folder).iterdir()):
                Path(folder).rmdir()

    sys.argv[1:] = [f"++{word}" if word.startswith(FREE) else word for word in sys.argv[1:]]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors, in place of printing them and exiting
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(guarded)()
    except MissingConfigException as error:
        tell(_missing_option(error))
    except (HydraException, OmegaConfBaseException) as error:
        tell(_refused_override(error, config_name))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    if faults:
        sys.exit(USAGE_ERROR)


def job_directory() -> str | None:
    """The directory that a multirun gives to the current job; None outside of multiruns."""
    config = HydraConfig.get()
    return config.runtime.output_dir if config.mode == RunMode.MULTIRUN else None


def _missing_option(error: MissingConfigException) -> str:
    """For `task=split_mnits`: there is no such YAML in the group."""
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    if not group:
        return one_line(error)
    return str(one_of(group, option, error.options or []))


def _refused_override(error: Exception, config_name: str) -> str:
    """For a key that is not in the configuration, or an override that can't be read."""
    key = re.search(r"Could not (?:override|append to config|delete from config)\W+'?([\w.@/-]+)", str(error))
    if key is None:
        return one_line(error)
    overrides = OverridesParser.create().parse_overrides([a for a in sys.argv[1:] if "=" in a and not a.startswith("-")])
    values = {o.key_or_group: o.get_value_string() for o in overrides}
    group = key[1].rpartition(".")[0]
    level = [k for k in _keys(config_name) if k.rpartition(".")[0] == group] or _keys(config_name)
    return str(ArgumentError(key[1], values.get(key[1], "?"), f"there is no such key; {nearest(key[1], level)}"))


def _keys(config_name: str) -> list[str]:
    """All keys of the default configuration."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(config_name)
    groups = {str(group): values for group, values in config.items_ex(resolve=False) if isinstance(values, DictConfig)}
    return [*map(str, config), *(f"{group}.{key}" for group, values in groups.items() for key in map(str, values))]
