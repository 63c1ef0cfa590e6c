"""The command line: Hydra composes, and whatever is wrong with the input is told in one line."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hnetcl.errors import ArgumentError, nearest, one_line, one_of

CONF = Path(__file__).resolve().parents[2] / "conf"
USAGE_ERROR = 2
INTERRUPTED = 130
NOT_IN_NAMES = ("run.", "data.root", "device=", "imports=", "observers=", "resume=", "hydra")
LONGEST_NAME = 120  # bytes; file systems allow 255
FREE = "net.options"  # its keys are the network's own; Hydra would refuse them as unknown without the ++


def main(config_name: str, job: Callable[[DictConfig], None]) -> None:
    """Runs `job` with the configuration that the command line asks for; exits with 2 and one line where that is faulty.

    In a multirun a faulty job does not keep the others from running.

    Args:
        config_name: the primary YAML in conf/.
        job: called once, or once per job of a multirun. An ArgumentError that it raises is told as the user's.
    """
    faults: list[str] = []

    def tell(line: str) -> None:
        faults.append(line)
        print(line, file=sys.stderr)

    def guarded(composed: DictConfig) -> None:
        try:
            with _others_quiet():
                job(composed)
        except ArgumentError as error:
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


def run_name() -> str:
    """What the current job was told beside the defaults, as a folder's name.

    First what differs among the jobs of a multirun, then chosen parts and the like, then single values. Where the run lies, and
    what may differ between a run and its continuation, is left out.
    """
    swept = {override.key_or_group for override in _typed() if override.is_sweep_override()}

    def rank(word: str) -> tuple[bool, bool]:
        key = word.partition("=")[0]
        return key not in swept, "." in key

    told = (word.lstrip("+~") for word in HydraConfig.get().overrides.task)
    words = sorted((word for word in told if not word.startswith(NOT_IN_NAMES)), key=rank)
    return _within(",".join(re.sub(r"[^\w.+,=\[\]-]+", "_", word) for word in words), LONGEST_NAME)


def _typed() -> list[Override]:
    return OverridesParser.create().parse_overrides([a for a in sys.argv[1:] if "=" in a and not a.startswith("-")])


@contextmanager
def _others_quiet() -> Iterator[None]:
    """Within, other libraries tell warnings and errors, nothing less: Hydra prints all that reaches the root logger."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        root.setLevel(before)


def _within(name: str, most: int) -> str:
    """The name, cut where a part of it ends."""
    return name if len(name.encode()) <= most else _within(name.rpartition(",")[0] or name[: len(name) // 2], most)


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
    values = {o.key_or_group: o.get_value_string() for o in _typed()}
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
