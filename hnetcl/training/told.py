"""What observers are told of a step."""

import torch
from torch import Tensor

from hnetcl.methods import Inputs, Losses, Run, active_only
from hnetcl.tasks import score
from hnetcl.training.observer import Step
from hnetcl.training.watch import Watch


def step_record(run: Run, steps: int, losses: Losses, inputs: Inputs, norm: Tensor, watch: Watch) -> Step:
    """A step as observers hear of it, before the optimizer's; its values travel to the host together.

    Args:
        steps: that the task takes, at most.
        norm: of all gradients, 0-dim, before they are clipped.

    Raises:
        DivergedError: the watch has found numbers that are not finite.
    """
    accuracy = score(inputs.loss, active_only(losses.logits, inputs.active), inputs.y)
    measured = torch.stack([*losses.parts.values(), accuracy, norm, watch.found])
    *parts, right, length, found = measured.tolist()
    if found:
        watch.read()
    named = dict(zip(losses.parts, parts, strict=True))
    rate = run.optimizer.param_groups[0]["lr"]
    return Step(run.task, run.step + 1, steps, named, right, length, rate)
