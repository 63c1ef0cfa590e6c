"""Dark experience replay."""

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from hnetcl.methods.base import Draw, Inputs, Losses, Run
from hnetcl.methods.replay import Replay
from hnetcl.model import HyperModel
from hnetcl.registry import register


@register("method", "der")
class DER(Replay):
    r"""DER++: replayed samples are held to the logits that the model gave when they were stored, and others to their labels.

    .. math:: \alpha \lVert z - h(x) \rVert^2 / K + \beta \ell(y', h(x'))

    with (x, z) and (x', y') drawn from a class-balanced reservoir each, of which old tasks are drawn; the rest as in `Replay`.

    Args:
        size: samples in memory, for all tasks together.
        alpha: strength on logits.
        beta: strength on labels; 0 is DER.

    Source: Buzzega et al. 2020 (arXiv:2004.07211), equation 6.
    """

    def __init__(
        self, *, size: Annotated[int, Ge(1)] = 2000, alpha: Annotated[float, Ge(0)] = 0.1, beta: Annotated[float, Ge(0)] = 1.0
    ) -> None:
        super().__init__(size=size, weight=beta)
        self.alpha = alpha

    def inputs(self, run: Run, draw: Draw) -> Inputs:
        inputs = super().inputs(run, draw)
        if run.task:
            self.replay(inputs, run, "logits", len(inputs.y))
        return inputs

    def loss(self, model: HyperModel, inputs: Inputs) -> Losses:
        task, replayed = self.losses(model, inputs, ["memory", "logits"])
        if not replayed:
            return task
        (logits, samples), (held, stored) = replayed
        old = self.weight * inputs.loss_of(logits, samples.y, inputs.tensors.get("memory.active"))
        drift = self.alpha * F.mse_loss(held, stored.logits)
        return Losses(task.total + old + drift, {**task.parts, "replay": old, "distillation": drift}, task.logits)

    micro_batches = Replay.micro_batches  # knows both groups of samples

    def task_state(self) -> dict[str, Tensor]:
        return super().task_state()  # all that its steps change is the memory
