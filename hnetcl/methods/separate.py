"""Separate networks: a network for each task. Nothing is forgotten, and nothing is passed on."""

from hnetcl.errors import ArgumentError
from hnetcl.methods.base import Method
from hnetcl.model import HyperModel
from hnetcl.registry import register
from hnetcl.tasks import TaskSequence


@register("method", "separate")
class Separate(Method):
    """Trains every task's network alone, from the same start: the bound without forgetting and without transfer.

    It asks for a model in which tasks have nothing in common: `hnet=direct hnet.per_task=[*] bn.rows=task`.
    """

    def check(self, model: HyperModel, sequence: TaskSequence) -> None:
        common = model.common_parameters()
        if common:
            rule = f"tasks have {next(iter(common))} in common; allowed: hnet=direct hnet.per_task=[*]"
            raise ArgumentError("method", "separate", rule)
        if model.rows != "task":
            raise ArgumentError("bn.rows", model.rows, "is not allowed with method=separate; allowed: task")
