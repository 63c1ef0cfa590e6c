"""What is done about forgetting: one method a file. `registry.find("method", name)` is a method by its name."""

from hnetcl.methods.base import Draw, Inputs, Losses, Method, Run, active_only, resumes_within_task, takes_micro_batches
from hnetcl.methods.quadratic import QuadraticPenalty

__all__ = [
    "Draw",
    "Inputs",
    "Losses",
    "Method",
    "QuadraticPenalty",
    "Run",
    "active_only",
    "resumes_within_task",
    "takes_micro_batches",
]
