"""Joint training: all data seen so far stays at hand. The upper baseline."""

import torch
from torch import Tensor

from hnetcl.methods.base import Draw, Inputs, Method, Run
from hnetcl.registry import register


@register("method", "joint")
class Joint(Method):
    """While task t is current, batches come from tasks 0 to t.

    A network that differs between tasks takes one task at a step: 0, 1, ..., t, 0, 1, ... in turn. One that is the same for all
    takes batches in which all of them are mixed.
    """

    sees_old_data = True

    def inputs(self, run: Run, draw: Draw) -> Inputs:
        if run.model.is_conditioned:
            task = run.step % (run.task + 1)
            return run.batch(*draw(task), task)
        batches = [draw(task) for task in range(run.task + 1)]
        size = max(len(y) for _, y in batches)
        x, y = (torch.cat(each) for each in zip(*batches, strict=True))
        chosen = torch.randperm(len(y), generator=run.generator, device=y.device)[:size]
        return run.batch(x[chosen], y[chosen], run.task)

    def micro_batches(self, inputs: Inputs, parts: int) -> list[Inputs]:
        return inputs.split(parts)

    def task_state(self) -> dict[str, Tensor]:
        return {}
