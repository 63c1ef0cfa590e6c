"""The schema of a run's configuration: one dataclass for every YAML in conf/, with types and bounds.

A dataclass gives the keys, the YAML of the same `name` gives the values. Free of torch, so that a refused value is refused at
once. Keys bear the names of the arguments that they become.
"""

from hnetcl.config.fields import Checked
from hnetcl.config.parts import DirectConfig, MLPConfig, ModuleConfig
from hnetcl.config.root import GROUPS, Config, EvaluationConfig, EvaluationSettings, Settings

__all__ = [
    "GROUPS",
    "Checked",
    "Config",
    "DirectConfig",
    "EvaluationConfig",
    "EvaluationSettings",
    "MLPConfig",
    "ModuleConfig",
    "Settings",
]
