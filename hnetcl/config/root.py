"""The schema of the whole: what a run and an evaluation are told."""

import math
from dataclasses import dataclass
from typing import Any

from hnetcl.choices import (
    ALGEBRA_DIMS,
    AT_THE_END,
    COSTS,
    INFERENCE_METRICS,
    INFERENCES,
    INITS,
    METRICS,
    OBSERVERS,
    SCENARIOS,
    SHARED,
)
from hnetcl.config.fields import Checked, choice, names, number, parameter_names, path
from hnetcl.config.parts import (
    AdagradConfig,
    AdamConfig,
    BatchNormConfig,
    ChunkedConfig,
    DirectConfig,
    FinetuneConfig,
    FullConfig,
    JointConfig,
    LeNetConfig,
    LowRankConfig,
    MLPConfig,
    ModuleConfig,
    NetConfig,
    OutputRegularizerConfig,
    PermutedConfig,
    RMSpropConfig,
    SGDConfig,
    SplitConfig,
    StructuredConfig,
    TrainerConfig,
)
from hnetcl.errors import ArgumentError


@dataclass(kw_only=True)
class RunConfig(Checked):
    dir: str | None = path()


@dataclass(kw_only=True)
class DataConfig(Checked):
    root: str | None = path()


@dataclass(kw_only=True)
class Settings(Checked):
    seed: int = number(least=0, most=2**31 - 1)
    device: str
    scenario: str = choice(SCENARIOS)
    inference: str = choice(INFERENCES)
    generate: Any = parameter_names()
    shared: str = choice(SHARED)
    init: str | None = choice(INITS)
    imports: list[str]
    optimized_metric: str = choice((*METRICS, *INFERENCE_METRICS, *COSTS))
    observers: list[str] = names(OBSERVERS)
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
        self._check_scenario()
        self._check_method()
        self._check_widths()

    def _check_scenario(self) -> None:
        if self.scenario != "task" and self.inference == "agreement" and isinstance(self.hnet, DirectConfig):
            raise ArgumentError("inference", self.inference, "hnet=direct has no task embeddings; allowed: confidence, entropy")
        if self.scenario == "task" and self.optimized_metric in INFERENCE_METRICS:
            raise ArgumentError("optimized_metric", self.optimized_metric, "in scenario=task the task is told, not inferred")
        if self.trainer.evaluate == "last" and self.optimized_metric in METRICS and self.optimized_metric not in AT_THE_END:
            rule = f"takes more than trainer.evaluate=last measures; allowed with it: {', '.join(AT_THE_END)}"
            raise ArgumentError("optimized_metric", self.optimized_metric, rule)

    def _check_method(self) -> None:
        if not isinstance(self.method, OutputRegularizerConfig):
            return
        norm = not isinstance(self.net, NetConfig) or self.net.norm == "batch"
        if norm and (self.method.importance, self.bn.stats) == ("fisher", "batch"):
            rule = "needs batch norm whose statistics don't depend on the batch; allowed with bn.stats=batch: none"
            raise ArgumentError("method.importance", self.method.importance, rule)
        weights, tasks = self.method.task_weights, self.task.num_tasks
        if weights is not None and len(weights) not in (tasks - 1, tasks):
            rule = f"must be {tasks} weights, one for each task (task.num_tasks={tasks}); the last may be left out"
            raise ArgumentError("method.task_weights", weights, rule)
        if weights is not None and not all(0 <= weight < math.inf for weight in weights):
            raise ArgumentError("method.task_weights", weights, "must be finite and not negative")

    def _check_widths(self) -> None:
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
    run: str = path()
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
