"""The schema of a run's configuration: one dataclass for every YAML in conf/, with types and bounds.

A dataclass gives the keys, the YAML of the same `name` gives the values. Free of torch, so that a refused value is refused at
once. Keys bear the names of the arguments that they become.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from hnetcl.choices import (
    ACTIVATIONS,
    ALGEBRA_DIMS,
    BACKENDS,
    CLASS_ORDERS,
    COMPILES,
    HEAD_SCALES,
    IMPORTANCES,
    INFERENCES,
    NORMS,
    PRECISIONS,
    SCENARIOS,
    SCHEDULES,
    SHARED,
    STATS,
    TARGET_DEVICES,
    TARGET_DTYPES,
    TARGETS,
    WHITENINGS,
)
from hnetcl.errors import ArgumentError, one_of

Check = Callable[[Any], str]


def number(*, least: float = -math.inf, above: float = -math.inf, most: float = math.inf) -> Any:
    """A field for a finite number with bounds."""
    rules = [(least, f"at least {least:g}"), (above, f"greater than {above:g}"), (most, f"at most {most:g}")]
    text = " and ".join(rule for bound, rule in rules if math.isfinite(bound)) or "finite"

    def check(value: float) -> str:
        good = math.isfinite(value) and least <= value <= most and value > above
        return "" if good else f"must be {text}" if math.isfinite(value) else f"must be a finite number, {text}"

    return field(metadata={"check": check})


def choice(options: tuple[str, ...]) -> Any:
    """A field for one of some names."""
    return field(metadata={"options": options})


def widths() -> Any:
    """A field for a list of positive widths."""
    return field(
        metadata={"check": lambda value: "" if value and min(value) >= 1 else "must be a list of widths of at least 1"}
    )


def parameter_names() -> Any:
    """A field for one word, or a list of patterns of parameters' names."""

    def check(value: Any) -> str:
        words = value if isinstance(value, list) else [value]
        good = words and all(isinstance(word, str) for word in words)
        return "" if good else "must be all, norm, or a list of patterns of parameters' names"

    return field(metadata={"check": check})


@dataclass(kw_only=True)
class Checked:
    """Checks its fields against their bounds; None is let through, for the types say where it may stand.

    Raises:
        ArgumentError: for the first value out of bounds.
    """

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            options: tuple[str, ...] | None = f.metadata.get("options")
            check: Check | None = f.metadata.get("check")
            if value is None:
                continue
            if options is not None and value not in options:
                raise one_of(f.name, value, options)
            fault = check(value) if check else ""
            if fault:
                raise ArgumentError(f.name, value, fault)


@dataclass(kw_only=True)
class Part(Checked):
    """A replaceable part; `name` says which dataclass of its group the YAML belongs to."""

    name: str


# ---------------------------------------------------------------------- task


@dataclass(kw_only=True)
class SplitConfig(Part):
    dataset: str
    num_tasks: int = number(least=1)
    classes_per_task: int = number(least=2)
    class_order: str = choice(CLASS_ORDERS)
    val_size: int = number(least=0)


@dataclass(kw_only=True)
class PermutedConfig(Part):
    dataset: str
    num_tasks: int = number(least=1)
    padding: int = number(least=0)
    val_size: int = number(least=0)


# ---------------------------------------------------------------------- bn and net


@dataclass(kw_only=True)
class BatchNormConfig(Checked):
    algebra: str = choice(tuple(ALGEBRA_DIMS))
    stats: str = choice(STATS)
    whitening: str | None = choice(WHITENINGS)
    affine: bool
    momentum: float | None = number(least=0, most=1)
    eps: float = number(above=0)
    sync: bool
    backend: str = choice(BACKENDS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sync and self.backend == "reference":
            raise ArgumentError(
                "backend", self.backend, "can't be given beside sync=True; allowed: auto, closed_form, compiled"
            )


@dataclass(kw_only=True)
class NetConfig(Part):
    algebra: str = choice(tuple(ALGEBRA_DIMS))
    hidden: list[int] = widths()
    norm: str = choice(NORMS)


@dataclass(kw_only=True)
class MLPConfig(NetConfig):
    pass


@dataclass(kw_only=True)
class LeNetConfig(NetConfig):
    channels: list[int] = widths()


@dataclass(kw_only=True)
class ModuleConfig(Part):
    model: str
    options: dict[str, Any]


# ---------------------------------------------------------------------- hnet


@dataclass(kw_only=True)
class FullConfig(Part):
    hidden: list[int] = widths()
    embedding_dim: int = number(least=1)
    compression: float | None = number(above=0)
    activation: str = choice(ACTIVATIONS)
    head_scale: str = choice(HEAD_SCALES)


@dataclass(kw_only=True)
class PiecewiseConfig(Part):
    hidden: list[int] = widths()
    embedding_dim: int = number(least=1)
    chunk_embedding_dim: int = number(least=1)
    chunk_size: int | None = number(least=1)
    compression: float | None = number(above=0)
    activation: str = choice(ACTIVATIONS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk_size is not None and self.compression is not None:
            raise ArgumentError("chunk_size", self.chunk_size, f"can't be given beside compression={self.compression}")


@dataclass(kw_only=True)
class ChunkedConfig(PiecewiseConfig):
    head_scale: str = choice(HEAD_SCALES)


@dataclass(kw_only=True)
class StructuredConfig(ChunkedConfig):
    groups: list[list[str]] | None


@dataclass(kw_only=True)
class LowRankConfig(PiecewiseConfig):
    rank: int = number(least=1)
    base: bool


@dataclass(kw_only=True)
class DirectConfig(Part):
    per_task: list[str]


# ---------------------------------------------------------------------- method, optimizer, trainer


@dataclass(kw_only=True)
class OutputRegularizerConfig(Part):
    beta: float = number(least=0)
    sample: int | None = number(least=1)
    targets: str = choice(TARGETS)
    task_weights: list[float] | None
    lookahead: bool
    targets_dtype: str | None = choice(TARGET_DTYPES)
    targets_device: str | None = choice(TARGET_DEVICES)
    tasks_at_once: int | None = number(least=1)
    importance: str = choice(IMPORTANCES)
    fisher_samples: int = number(least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("targets_dtype", self.targets_dtype), ("targets_device", self.targets_device)):
            if value is not None and self.targets == "online":
                raise ArgumentError(name, value, "targets=online stores no targets; allowed: None")


@dataclass(kw_only=True)
class FinetuneConfig(Part):
    pass


@dataclass(kw_only=True)
class JointConfig(Part):
    pass


@dataclass(kw_only=True)
class OptimizerConfig(Part):
    lr: float = number(above=0)
    weight_decay: float = number(least=0)
    schedule: str = choice(SCHEDULES)


@dataclass(kw_only=True)
class AdamConfig(OptimizerConfig):
    pass


@dataclass(kw_only=True)
class AdagradConfig(OptimizerConfig):
    lr_decay: float = number(least=0)
    initial_accumulator_value: float = number(least=0)


@dataclass(kw_only=True)
class RMSpropConfig(OptimizerConfig):
    alpha: float = number(least=0, most=1)
    momentum: float = number(least=0, most=1)
    centered: bool


@dataclass(kw_only=True)
class SGDConfig(OptimizerConfig):
    momentum: float = number(least=0, most=1)
    nesterov: bool


@dataclass(kw_only=True)
class TrainerConfig(Checked):
    steps: int | None = number(least=1)
    epochs: int | None = number(least=1)
    batch_size: int = number(least=2)
    eval_batch_size: int = number(least=1)
    log_every: int = number(least=1)
    threads: int | None = number(least=1)
    deterministic: bool
    precision: str = choice(PRECISIONS)
    compile: str = choice(COMPILES)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.steps is None) == (self.epochs is None):
            raise ArgumentError("steps", self.steps, f"give steps or epochs, not both or none (epochs={self.epochs})")


# ---------------------------------------------------------------------- the whole


@dataclass(kw_only=True)
class RunConfig(Checked):
    dir: str | None


@dataclass(kw_only=True)
class DataConfig(Checked):
    root: str | None


@dataclass(kw_only=True)
class Settings(Checked):
    seed: int = number(least=0, most=2**31 - 1)
    device: str
    scenario: str = choice(SCENARIOS)
    inference: str = choice(INFERENCES)
    generate: Any = parameter_names()
    shared: str = choice(SHARED)
    imports: list[str]
    resume: bool


@dataclass(kw_only=True)
class Config(Settings):
    run: RunConfig
    data: DataConfig
    task: SplitConfig | PermutedConfig
    bn: BatchNormConfig
    net: MLPConfig | LeNetConfig | ModuleConfig
    hnet: FullConfig | ChunkedConfig | StructuredConfig | LowRankConfig | DirectConfig
    method: OutputRegularizerConfig | FinetuneConfig | JointConfig
    optimizer: AdagradConfig | AdamConfig | RMSpropConfig | SGDConfig
    trainer: TrainerConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scenario != "task" and self.inference == "agreement" and isinstance(self.hnet, DirectConfig):
            raise ArgumentError("inference", self.inference, "hnet=direct has no task embeddings; allowed: confidence, entropy")
        if isinstance(self.method, OutputRegularizerConfig) and (self.method.importance, self.bn.stats) == ("fisher", "batch"):
            rule = "needs batch norm whose statistics don't depend on the batch; allowed with bn.stats=batch: none"
            raise ArgumentError("method.importance", self.method.importance, rule)
        if not isinstance(self.net, NetConfig):
            return
        lists = {"net.hidden": self.net.hidden}
        if isinstance(self.net, LeNetConfig):
            lists["net.channels"] = self.net.channels
        for algebra in {self.net.algebra, self.bn.algebra if self.net.norm == "batch" else self.net.algebra}:
            for key, values in lists.items():
                if any(width % ALGEBRA_DIMS[algebra] for width in values):
                    rule = f"every width must be a multiple of {ALGEBRA_DIMS[algebra]} ({algebra})"
                    raise ArgumentError(key, values, rule)


@dataclass(kw_only=True)
class EvaluationSettings(Checked):
    run: str
    task: int | None = number(least=0)
    stats: str
    scenario: str | None = choice(SCENARIOS)
    inference: str | None = choice(INFERENCES)
    imports: list[str]
    device: str


@dataclass(kw_only=True)
class EvaluationConfig(EvaluationSettings):
    data: DataConfig


GROUPS: dict[str, dict[str, type[Checked]] | type[Checked]] = {
    "run": RunConfig,
    "data": DataConfig,
    "task": {"split": SplitConfig, "permuted": PermutedConfig},
    "bn": BatchNormConfig,
    "net": {"mlp": MLPConfig, "lenet": LeNetConfig, "torchvision": ModuleConfig, "custom": ModuleConfig},
    "hnet": {
        "full": FullConfig,
        "chunked": ChunkedConfig,
        "structured": StructuredConfig,
        "low_rank": LowRankConfig,
        "direct": DirectConfig,
    },
    "method": {"output_regularizer": OutputRegularizerConfig, "finetune": FinetuneConfig, "joint": JointConfig},
    "optimizer": {
        "adagrad": AdagradConfig,
        "adam": AdamConfig,
        "adamw": AdamConfig,
        "rmsprop": RMSpropConfig,
        "sgd": SGDConfig,
    },
    "trainer": TrainerConfig,
}
"""The groups of a configuration: their schema, or a schema for every `name`."""
