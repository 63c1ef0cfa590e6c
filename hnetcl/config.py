"""What a run is told: the configuration, checked against the signatures of what it is for.

Free of torch, so that a refused value is refused at once.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib.util import find_spec
from inspect import Parameter
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Ge, Le, Len, doc

from hnetcl.errors import ArgumentError, one_of
from hnetcl.registry import COSTS, INFERENCE_METRICS, Option, Options, checked, declared_options, given, names, options

MOST_THREADS = max(256, 4 * (os.cpu_count() or 1))  # a system that runs out of threads ends the process
CHOSEN = ("task", "bn", "net", "hnet", "method", "optimizer", "inference")  # the groups that are parts; `name` says which

Values = dict[str, Any]
Scenario = Literal["task", "domain", "class"]
ExportFormat = Literal["program", "onnx", "state"]
EXPORTERS = ("onnx", "onnxscript", "onnxruntime")  # what the format onnx takes to be written and loaded back


@dataclass(kw_only=True)
class Config:
    """A run's configuration. The groups are plain values by key.

    Raises:
        ArgumentError: keys that don't go together.
    """

    seed: Annotated[int, Ge(0), Le(2**31 - 1)]
    device: str
    scenario: Scenario
    head: Literal["task", "shared", "all"] | None
    active_classes: Literal["all", "seen", "current"] | None
    generate: Annotated[str | Annotated[list[str], Len(1)], doc("all, norm, or a list of patterns of parameters' names")]
    shared: Literal["trained", "trained_once", "fixed"]
    init: Literal["own", "fan_in", "fan_out", "torch", "given"] | None
    imports: list[str]
    optimized_metric: str
    observers: list[str]
    references: list[Literal["joint", "separate", "finetune"]] = field(default_factory=list)
    resume: bool
    run: Values
    data: Values
    task: Values
    bn: Values
    net: Values
    hnet: Values
    method: Values
    optimizer: Values
    inference: Values
    trainer: Values

    def __post_init__(self) -> None:
        for name in self.observers:
            if name not in names("observer"):
                error = one_of("observers", name, names("observer"))
                raise ArgumentError("observers", self.observers, f"{name}: {error.allowed}")
        metrics = [*names("metric"), *INFERENCE_METRICS, *COSTS]
        if self.optimized_metric not in metrics:
            raise one_of("optimized_metric", self.optimized_metric, metrics)
        if self.scenario == "task" and self.optimized_metric in INFERENCE_METRICS:
            raise ArgumentError("optimized_metric", self.optimized_metric, "in scenario=task the task is told, not inferred")
        if self.active_classes is not None and self.chosen_head != "all":
            rule = f"is for head=all, which has logits for the classes of all tasks; here it is head={self.chosen_head}"
            raise ArgumentError("active_classes", self.active_classes, rule)

    @property
    def holds_directly(self) -> bool:
        """Whether the weights are held themselves, by no hypernetwork."""
        return bool(self.hnet["name"] == "direct")

    @property
    def chosen_head(self) -> Literal["task", "shared", "all"]:
        """The head, as it is by default where none is given."""
        if self.head is not None or not self.holds_directly:
            return self.head or "task"
        defaults: dict[str, Literal["task", "shared", "all"]] = {"task": "task", "domain": "shared", "class": "all"}
        return defaults[self.scenario]

    @property
    def chosen_rows(self) -> Literal["task", "shared"]:
        """The rows of statistics, as they are by default where nothing is given."""
        default: Literal["task", "shared"] = "shared" if self.holds_directly and self.scenario != "task" else "task"
        return self.bn["rows"] or default

    def values(self) -> Values:
        """All of it, as plain values."""
        return {own.name: getattr(self, own.name) for own in fields(self)}


@dataclass(kw_only=True)
class EvaluationConfig:
    """What an evaluation is told."""

    run: str
    task: Annotated[int, Ge(0)] | None
    stats: str
    scenario: Scenario | None
    inference: str | Values | None
    split: Literal["test", "val"] = "test"
    imports: list[str]
    device: str
    data: Values

    def __post_init__(self) -> None:
        self.run = os.path.expanduser(self.run)
        if self.inference is not None:
            self.inference = _group("inference", self.inference)


@dataclass(kw_only=True)
class ExportConfig:
    """What an export is told.

    Raises:
        ArgumentError: a package is missing that a format takes.
    """

    run: str
    task: Annotated[int, Ge(0)] | None
    out: str | None
    formats: Annotated[list[ExportFormat], Len(1)]
    imports: list[str]
    data: Values

    def __post_init__(self) -> None:
        self.run = os.path.expanduser(self.run)
        self.out = None if self.out is None else os.path.expanduser(self.out)
        require_exporters(self.formats)


def require_exporters(formats: Sequence[str]) -> None:
    """Refuses formats of an export whose packages are missing.

    Raises:
        ArgumentError: names them, and what installs them.
    """
    missing = [package for package in EXPORTERS if find_spec(package) is None] if "onnx" in formats else []
    if missing:
        rule = f"onnx needs {', '.join(missing)}: pip install 'hnetcl[export]'; allowed without: program, state"
        raise ArgumentError("formats", f"[{','.join(formats)}]", rule)


def parse(values: Mapping[str, Any]) -> Config:
    """Checks the configuration of a run and makes it an object.

    Args:
        values: nested plain values, as the command line composed them or as a run's config.yaml holds them.

    Raises:
        ArgumentError: a key that is unknown or missing, a value of the wrong type or out of bounds; in one line, named as on
            the command line.
    """
    return Config(**_root(values, Config))


def parse_evaluation(values: Mapping[str, Any]) -> EvaluationConfig:
    """The same for the arguments of an evaluation."""
    return EvaluationConfig(**_root(values, EvaluationConfig))


def parse_export(values: Mapping[str, Any]) -> ExportConfig:
    """The same for the arguments of an export."""
    return ExportConfig(**_root(values, ExportConfig))


def group_options(group: str, name: str | None = None) -> Options:
    """The keys of a group.

    Args:
        name: of the part, where the group is one.
    """
    if group in CHOSEN:
        own = dict(options(group, str(name)))
        if group == "net" and takes_norm(str(name)):
            own["norm"] = Option(Literal["batch", "none"], "batch")
        if group == "bn":
            own["rows"] = Option(Literal["task", "shared"] | None, None)
        return {"name": Option(str), **own}
    if group == "trainer":
        runtime = declared_options("hnetcl.training.engine", "engine")
        threads = Option(Annotated[int, Ge(1), Le(MOST_THREADS)] | None, runtime["threads"].default)
        precision = declared_options("hnetcl.wrapping", "wrap")["precision"]
        loop = declared_options("hnetcl.training.trainer", "Trainer")
        return {**loop, "threads": threads, "deterministic": runtime["deterministic"], "precision": precision}
    return {"dir" if group == "run" else "root": Option(str | None, None)}


def takes_norm(name: str) -> bool:
    """Whether a network is built with norm layers that it is given."""
    return "norm" in given("net", name)


def all_keys() -> list[str]:
    """The keys of all parts that can be chosen, `GROUP.KEY` each."""
    found = {f"{group}.{key}" for group in CHOSEN for name in names(group) for key in group_options(group, name)}
    return sorted(found | {f"trainer.{key}" for key in group_options("trainer")})


def _root(values: Mapping[str, Any], kind: type) -> Values:
    hints = get_type_hints(kind, include_extras=True)
    groups = [key for key, hint in hints.items() if hint is Values or hint == Values]
    defaults = {own.name: own.default for own in fields(kind) if own.default is not MISSING}
    defaults |= {own.name: own.default_factory() for own in fields(kind) if own.default_factory is not MISSING}
    scalars = {key: Option(hint, defaults.get(key, Parameter.empty)) for key, hint in hints.items() if key not in groups}
    found = checked({key: value for key, value in values.items() if key not in groups}, scalars, beside=groups)
    for group in groups:
        if group not in values:
            raise ArgumentError(group, None, "is missing")
        found[group] = _group(group, values[group])
    return found


def _group(group: str, values: Any) -> Values:
    if group == "inference" and isinstance(values, str):  # a name alone, as runs before had it
        _known(group, group, values)
        values = {"name": values}
    if not isinstance(values, dict):
        raise ArgumentError(group, values, "must be a group of values")
    if group == "bn":
        values = {"name": "layer", **values}
    if group in CHOSEN:
        _known(group, f"{group}.name", values.get("name"))
    note = f" ({group}={values['name']})" if group in CHOSEN else ""
    if group == "bn":  # whose options are named by the algebra
        note = "" if values["name"] == "layer" else f" (bn.name={values['name']})"
    found = checked(values, group_options(group, values.get("name")), f"{group}.", note=note)
    if group in ("run", "data"):
        found = {key: value if value is None else os.path.expanduser(value) for key, value in found.items()}
    return found


def _known(kind: str, key: str, name: Any) -> None:
    if name not in names(kind):
        raise one_of(key, name, names(kind))
