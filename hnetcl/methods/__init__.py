"""What is done about forgetting: one method a file. `registry.find("method", name)` is a method by its name."""

from hnetcl.methods.base import Draw, Inputs, Losses, Method, Run, active_only, resumes_within_task

__all__ = ["Draw", "Inputs", "Losses", "Method", "Run", "active_only", "resumes_within_task"]
