"""The command line: Hydra composes, and whatever is wrong with the input is told in one line."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from traceback import walk_tb
from types import FunctionType
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from hnetcl.cli.call import Call
from hnetcl.cli.plain import read_config, require_followed_nowhere
from hnetcl.cli.refused import record_refusal
from hnetcl.cli.streams import lost_output, make_patient
from hnetcl.cli.words import as_text, is_multirun, prepared, read
from hnetcl.config import CHOSEN
from hnetcl.errors import ArgumentError, DivergedError, nearest, one_line, one_of
from hnetcl.registry import names

PACKAGE = Path(__file__).resolve().parents[1]
CONF = next(folder / "conf" for folder in (PACKAGE, PACKAGE.parent) if (folder / "conf").is_dir())  # installed, or a checkout
USAGE_ERROR = 2
INTERRUPTED = 130
PRIMARY = ("-cp", "--config-path", "-cn", "--config-name")  # Hydra's flags for another primary configuration
OF_OURS = ("hydra.output_subdir=null", "hydra.run.dir=.", "hydra/job_logging=none", "imports=[]")
Job = Callable[[DictConfig, Call], float | None]


def run(config_name: str, job: Job) -> None:
    """Runs `job` with the configuration that the command line asks for; exits with 2 and one line where that is faulty.

    In a multirun a faulty job does not keep the others from running, whichever launcher runs them.

    Args:
        config_name: the primary YAML in conf/. Only `config` is composed of the groups there.
        job: called once, or once per job of a multirun. What it raises as an ArgumentError or DivergedError is told in one
            line. What it returns a sweeper may optimize.
    """
    make_patient()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors, in place of printing them and exiting
    typed, faulty = tuple(sys.orig_argv), False
    with TemporaryDirectory() as folder:
        faults = Path(folder) / "faults"  # a file, for a launcher may run jobs in processes of their own
        try:
            options = option_names(config_name)
            add_parts(sys.argv[1:], options)
            sys.argv[1:] = from_a_file(prepared(sys.argv[1:], options))
            task = _guarded(job, typed, faults)
            hydra.main(version_base="1.3", config_path=search_folder(config_name), config_name=config_name)(task)()
        except (ArgumentError, HydraException, OmegaConfBaseException) as error:
            print(_explained(error, config_name), file=sys.stderr)
            faulty = True
        except OSError as error:
            if any(frame.f_code is task.__code__ for frame, _ in walk_tb(error.__traceback__)):
                raise  # the job's own
            rule = f"can't be written ({error.strerror})"
            name = "hydra.sweep.dir" if is_multirun(sys.argv[1:]) else "hydra.run.dir"
            print(ArgumentError(name, error.filename, rule), file=sys.stderr)
            faulty = True
        except ValueError:  # a sweeper that has no results, because all its jobs were faulty
            if not faults.exists():
                raise
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        if lost := lost_output():
            print(lost, file=sys.stderr)
        if faulty or lost or faults.exists():
            sys.exit(USAGE_ERROR)


def search_folder(config_name: str) -> str | None:
    """Where Hydra finds the parts of a configuration.

    One without groups is handed to it as it is: beside conf/task/, `task=2` would mean an option of that group.
    """
    if option_names(config_name):
        return str(CONF)
    ConfigStore.instance().store(config_name, OmegaConf.load(CONF / f"{config_name}.yaml"))
    return None


def from_a_file(words: Sequence[str]) -> list[str]:
    """The words, where they name a primary configuration in place of ours (`-cp DIR -cn config` repeats the run in DIR).

    What ours says about Hydra's own files is then said here: it leaves none. A path is one from the current directory, not
    from this file. As ever, a file imports nothing: `imports` must be typed.
    """
    made = list(words)
    for place, word in enumerate(made):
        flag, equals, _ = word.partition("=")
        if flag in PRIMARY and equals:
            made[place : place + 1] = word.split("=", 1)
    flags = [place for place, word in enumerate(made) if word in PRIMARY]
    if not flags:
        return list(words)
    folder, file = CONF, "config.yaml"
    for place in flags:
        if place + 1 == len(made):
            break
        if made[place] in PRIMARY[:2]:
            made[place + 1] = os.path.abspath(os.path.expanduser(made[place + 1]))
            folder = Path(made[place + 1])
        else:
            file = made[place + 1].removesuffix(".yaml") + ".yaml"
    if (folder / "tasks.json").exists():  # of a saved run, perhaps another's
        try:
            require_followed_nowhere(read_config(folder / file))
        except ValueError as error:
            raise ArgumentError("config-path", folder, f"{file} is no configuration of a run ({one_line(error)})") from error
    typed = {word.partition("=")[0].lstrip("+~") for word in words}
    return [*made, *(word for word in OF_OURS if word.partition("=")[0] not in typed)]


def add_parts(words: Sequence[str], options: Mapping[str, Sequence[str]]) -> None:
    """Makes options of parts that have no YAML: they are all defaults. Users' own are told apart once they are imported."""
    imports = any(word.startswith("imports=") for word in words)
    folders = [Path(folder) for flag, folder in pairwise(words) if flag in ("--config-dir", "-cd")]
    folders += [Path(word.partition("=")[2]) for word in words if word.startswith("--config-dir=")]
    for folder in folders:
        for path in sorted(folder.glob("*/*.yaml")):
            if (CONF / path.relative_to(folder)).exists():
                raise ArgumentError("config-dir", folder, f"{path.relative_to(folder)} is a file of hnetcl's own; rename yours")
    for word in words:
        group, _, chosen = word.lstrip("+").partition("=")
        for name in chosen.split(",") if group in options and group in CHOSEN else []:
            known = name in options[group] or any((folder / group / f"{name}.yaml").exists() for folder in folders)
            if name.isidentifier() and not known and (imports or name in names(group)):
                node: dict[str, Any] = {"name": name}
                if group == "net":
                    node = {"defaults": [{"override /bn@_global_.bn": "real"}], **node}  # as of others' networks
                ConfigStore.instance().store(f"{name}.yaml", node, group=group)


def option_names(config_name: str) -> dict[str, list[str]]:
    """The groups that a configuration chooses from, and their options."""
    if config_name != "config":
        return {}
    folders = [path for path in CONF.iterdir() if path.is_dir() and path.name != "experiment"]
    return {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in folders}


def _guarded(job: Job, typed: tuple[str, ...], faults: Path) -> FunctionType:
    """The job, with a line in `faults` where it refuses its arguments, and one for reports where it never becomes a run."""

    def guarded(composed: DictConfig) -> float | None:
        make_patient()
        call = _call(typed)
        try:
            with _others_quiet():
                return job(composed, call)
        except (ArgumentError, DivergedError) as error:
            with faults.open("a", encoding="utf-8") as file:
                print(error, file=file)
            print(error, file=sys.stderr)
            record_refusal(call, error)
            if call.directory is not None and not any(Path(call.directory).iterdir()):
                Path(call.directory).rmdir()
            return None
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt | SystemExit):
                record_refusal(call, error)
            raise

    assert isinstance(guarded, FunctionType)
    return guarded


def _call(typed: tuple[str, ...]) -> Call:
    config = HydraConfig.get()
    overrides = tuple(map(str, OmegaConf.to_container(config.overrides.task) or ()))
    if config.mode != RunMode.MULTIRUN:
        return Call(typed, overrides)
    return Call(typed, overrides, config.runtime.output_dir, config.sweep.dir)


def _explained(error: Exception, config_name: str) -> str:
    """Hydra's errors in one line."""
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    return str(error) if isinstance(error, ArgumentError) else _refused_override(error, config_name)


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
        texts = [text for word in sys.argv[1:] if (text := as_text(word)) is not None]
        return one_line(error) + (f"; as text it is {texts[0]}" if texts else "")
    values = {o.key_or_group: o.get_value_string() for word in sys.argv[1:] if "=" in word and (o := read(word)) is not None}
    group, dot, leaf = key[1].rpartition(".")
    level, option = _siblings(error.__cause__, group)
    if not level:
        level = [k.rpartition(".")[2] for k in _keys(config_name) if k.rpartition(".")[0] == group]
    if not level:  # nor is there the group
        leaf, level, group, dot = key[1], _keys(config_name), "", ""
    rule = f"there is no such key; {nearest(leaf, level, group + dot)}{option}"
    return str(ArgumentError(key[1], values.get(key[1], "?"), rule))


def _siblings(cause: BaseException | None, group: str) -> tuple[list[str], str]:
    """The keys of what was composed where a key is missing, and the option that they belong to: ` (hnet=direct)`."""
    node = cause.parent_node if isinstance(cause, ConfigAttributeError | ConfigKeyError) else None
    if not isinstance(node, DictConfig) or (group and "hydra" in node):  # the root: there is no such group
        return [], ""
    keys = [str(key) for key in node if key != "hydra"]
    return keys, f" ({group}={node['name']})" if group and "name" in keys else ""


def _keys(config_name: str) -> list[str]:
    """All keys of the default configuration."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(config_name)
    groups = {str(group): values for group, values in config.items_ex(resolve=False) if isinstance(values, DictConfig)}
    return [*map(str, config), *(f"{group}.{key}" for group, values in groups.items() for key in map(str, values))]
