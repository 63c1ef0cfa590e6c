"""Averaged gradient episodic memory."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from hnetcl.methods.base import Draw, Inputs, Losses, Method, Run
from hnetcl.methods.replay import Replay
from hnetcl.model import HyperModel
from hnetcl.modules import main_logits
from hnetcl.registry import register


@register("method", "agem")
class AGEM(Replay):
    r"""A step may not raise the loss on stored samples, to first order: where it would, its gradient g becomes

    .. math:: g - \frac{g^\top r}{r^\top r} r \quad \text{if } g^\top r < 0

    with r the gradient of the loss on samples of old tasks, drawn anew at each step from a class-balanced reservoir (see
    `Memory`). Both are of the parameters that the tasks have in common: a task's own, such as its head, can't hurt others.

    The samples pass the network after the batch, in a forward of their own; batch norm sees them there. That forward is never
    compiled; the batch's loss is.

    Args:
        size: samples in memory, for all tasks together.
        reference: samples that r is estimated on; a network that differs between tasks takes those of one old task at a step.

    Source: Chaudhry et al. 2019 (arXiv:1812.00420), equation 11.
    """

    def __init__(self, *, size: Annotated[int, Ge(1)] = 2000, reference: Annotated[int, Ge(2)] = 256) -> None:
        super().__init__(size=size)
        self.reference = reference

    def inputs(self, run: Run, draw: Draw) -> Inputs:
        return Method.inputs(self, run, draw)

    def micro_batches(self, inputs: Inputs, parts: int) -> list[Inputs]:
        return Method.micro_batches(self, inputs, parts)  # the reference gradient is taken once, after the last

    def loss(self, model: HyperModel, inputs: Inputs) -> Losses:
        return Method.loss(self, model, inputs)

    def after_backward(self, run: Run, inputs: Inputs) -> dict[str, Tensor]:
        if run.task:
            stored = run.batch(inputs.x, inputs.y, run.task)
            self.replay(stored, run, "memory", self.reference)
            self._project(run.model, stored)
        return {}

    def _project(self, model: HyperModel, stored: Inputs) -> None:
        held = [p for p in model.common_parameters().values() if p.grad is not None]
        if not held:
            return
        with torch.enable_grad():
            own = stored.tensors
            logits = main_logits(model(own["memory.x"], own["memory.task"]))
            loss = stored.loss_of(logits, own["memory.y"], own.get("memory.active"))
            found = torch.autograd.grad(loss, held, materialize_grads=True)
        gradients = [p.grad for p in held if p.grad is not None]
        along = torch.stack([(g * r).sum() for g, r in zip(gradients, found, strict=True)]).sum()
        length = torch.stack([r.square().sum() for r in found]).sum()
        factor = torch.where(along < 0, along / length, 0.0)  # no length, no product below zero
        for gradient, r in zip(gradients, found, strict=True):
            gradient.sub_(factor * r)

    def task_state(self) -> dict[str, Tensor]:
        return super().task_state()  # all that its steps change is the memory
