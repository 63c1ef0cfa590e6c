"""Learning without forgetting."""

from copy import deepcopy
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from hnetcl.bn import BATCH, VirtualBatchNormLayer
from hnetcl.errors import ArgumentError
from hnetcl.methods.base import Draw, Inputs, Losses, Method, Run
from hnetcl.model import HyperModel
from hnetcl.modules import main_logits
from hnetcl.registry import register
from hnetcl.tasks import TaskSequence


@register("method", "lwf")
class LwF(Method):
    r"""What the model before the current task made of the current images, for the old tasks, is what the new one shall make.

    .. math:: \lambda \sum_{t < T} \tau^2 \, \mathrm{KL}(p_t^{\mathrm{before}}(x) \,\|\, p_t(x))

    with predictions p softened by the temperature tau. With one head over all classes it is one distribution over those of all
    old tasks. No old data are kept.

    Batch norm: for an old task both models normalize by the batch, and no row of statistics moves: they are of old images. A
    network with batch norm and heads per task can't be compiled as one graph.

    Args:
        lambda_: strength.
        temperature: tau.
        weighting: where tasks have no outputs of their own: "fixed", one term; "tasks", times the number of old tasks, as the
            sum above has it for outputs of their own (van de Ven et al. 2022, whose terms have no tau^2: lambda_ = 1/tau^2).
        outputs: with one head over all classes, those compared: "old", of old tasks; "all", which fits active_classes=all.

    Sources: Li & Hoiem 2016 (arXiv:1606.09282), section 3; Hinton et al. 2015 (arXiv:1503.02531) for the factor tau^2.
    """

    def __init__(
        self,
        *,
        lambda_: Annotated[float, Ge(0)] = 1.0,
        temperature: Annotated[float, Gt(0)] = 2.0,
        weighting: Literal["fixed", "tasks"] = "fixed",
        outputs: Literal["old", "all"] = "old",
    ) -> None:
        self.lambda_, self.temperature, self.weighting, self.outputs = lambda_, temperature, weighting, outputs
        self.before: HyperModel | None = None

    def check(self, model: HyperModel, sequence: TaskSequence) -> None:
        if sequence.loss != "cross_entropy":
            raise ArgumentError("name", "lwf", "compares probabilities of classes, and the sequence is a regression")
        if model.is_conditioned and self.weighting == "tasks":
            raise ArgumentError("weighting", "tasks", "needs a network that is the same for all tasks; allowed here: fixed")
        if sequence.head != "all" and self.outputs == "all":
            raise ArgumentError("outputs", "all", f"needs head=all, not head={sequence.head}; allowed here: old")
        if model.is_conditioned and model.buffers_by_task.shared(model.net):
            rule = "needs a network whose buffers training does not change, batch norm's rows excepted"
            raise ArgumentError("name", "lwf", rule)
        if not model.is_conditioned and any(isinstance(m, VirtualBatchNormLayer) for m in model.net.modules()):
            rule = "compares what is normalized by the batch, as bn.name=virtual never is; allowed with it: bn.rows=task"
            raise ArgumentError("name", "lwf", rule)

    def start_task(self, run: Run) -> None:
        self.before = deepcopy(run.model).eval().requires_grad_(False) if run.task else None

    @torch.no_grad()
    def inputs(self, run: Run, draw: Draw) -> Inputs:
        inputs = super().inputs(run, draw)
        if self.before is None:
            return inputs
        if run.model.is_conditioned:
            tasks = torch.arange(run.task, device=inputs.y.device)
            inputs.old = {"tasks": tasks, "logits": self._old_logits(self.before, inputs.x, tasks)}
            own = run.sequence.own_outputs(tasks)
            inputs.old |= {} if own is None else {"own": own[:, None]}
        else:
            inputs.tensors["logits"] = main_logits(self.before.run(self.before.hnet(0), inputs.x, 0, BATCH))
        if self.weighting == "tasks":
            inputs.tensors["weight"] = torch.full((), float(run.task), device=inputs.y.device)
        if (
            run.sequence.head == "all" and self.outputs == "old"
        ):  # what the model before says of the current classes it has not learned
            outputs = torch.arange(run.sequence.num_outputs, device=inputs.y.device)
            inputs.tensors["old"] = outputs < run.sequence.first_output(run.task)
        return inputs

    def micro_batches(self, inputs: Inputs, parts: int) -> list[Inputs]:
        return inputs.split(parts, logits=1 if inputs.old else 0)  # of old tasks [B, N, K]

    def loss(self, model: HyperModel, inputs: Inputs) -> Losses:
        task, among = super().loss(model, inputs), inputs.tensors.get("old")
        if inputs.old:
            tasks, before, among = inputs.old["tasks"], inputs.old["logits"], inputs.old.get("own", among)
            drift = inputs.weighted(self._divergence(before, self._old_logits(model, inputs.x, tasks), among)).sum()
        elif inputs.tensors:
            drift = self._divergence(inputs.tensors["logits"], task.logits, among)
        else:
            return task
        drift = self.lambda_ * inputs.tensors.get("weight", 1.0) * drift
        return Losses(task.total + drift, {**task.parts, "distillation": drift}, task.logits)

    def task_state(self) -> dict[str, Tensor]:
        return {}

    def _divergence(self, before: Tensor, now: Tensor, among: Tensor | None = None) -> Tensor:
        """The mean over the batch: [..., N, K] -> [...]."""
        lowest = torch.finfo(now.dtype).min
        if among is not None:
            before, now = (logits.masked_fill(~among, lowest) for logits in (before, now))
        p, q = (F.log_softmax(logits / self.temperature, -1) for logits in (before, now))
        return self.temperature**2 * (p.exp() * (p - q)).sum(-1).mean(-1)

    def _old_logits(self, model: HyperModel, x: Tensor, tasks: Tensor) -> Tensor:
        """[B, N, K] of B old tasks."""

        def one(params: dict[str, Tensor], task: Tensor) -> Tensor:
            return main_logits(model.run(params, x, task, BATCH))

        logits: Tensor = torch.func.vmap(one, randomness="different")(model.hnet(tasks), tasks)
        return logits
