"""The schema of every replaceable part, and of the trainer."""

import os
from dataclasses import dataclass
from typing import Any

from hnetcl.choices import (
    ACTIVATIONS,
    ALGEBRA_DIMS,
    BACKENDS,
    CLASS_ORDERS,
    COMPILES,
    EVALUATED,
    HEAD_SCALES,
    IMPORTANCES,
    NORMS,
    PRECISIONS,
    REPORTS,
    SCHEDULES,
    STATS,
    TARGET_DEVICES,
    TARGET_DTYPES,
    TARGETS,
    WHITENINGS,
)
from hnetcl.config.fields import Checked, Part, choice, number, widths
from hnetcl.errors import ArgumentError

MOST_THREADS = max(256, 4 * (os.cpu_count() or 1))  # a system that runs out of threads ends the process

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
    per_task: list[str] | None


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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise ArgumentError("nesterov", self.nesterov, f"needs a momentum above 0 (momentum={self.momentum})")


@dataclass(kw_only=True)
class TrainerConfig(Checked):
    steps: int | None = number(least=1)
    epochs: int | None = number(least=1)
    batch_size: int = number(least=2)
    eval_batch_size: int | None = number(least=1)
    log_every: int | None = number(least=1)
    threads: int | None = number(least=1, most=MOST_THREADS)
    deterministic: bool
    precision: str = choice(PRECISIONS)
    compile: str = choice(COMPILES)
    evaluate: str = choice(EVALUATED)
    statistics: str = choice(REPORTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.steps is None) == (self.epochs is None):
            raise ArgumentError("steps", self.steps, f"give steps or epochs, not both or none (epochs={self.epochs})")
