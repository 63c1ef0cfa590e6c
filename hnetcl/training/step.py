"""A training step, compiled where that is asked for."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from hnetcl.bn import auxiliary_loss
from hnetcl.compiling import Backend, can_compile, compile_step, makes_cuda_graphs
from hnetcl.errors import ArgumentError, one_of
from hnetcl.methods import Inputs, Losses, Method, Run, takes_micro_batches
from hnetcl.model import HyperModel
from hnetcl.tasks import Loss

COMPILES = ("auto", "on", "off")


class TrainingStep:
    """Leaves the gradients of the method's loss in the parameters; the optimizer's step is the caller's.

        step = TrainingStep(model, method, device)
        run = Run(model, task, data, optimizer, generator)
        method.start_task(run)
        losses = step(run, method.inputs(run, draw))
        optimizer.step()

    Compiled, hypernetwork -> parameters -> logits -> loss is one graph. It does not depend on a task's number or on how many
    old tasks there are, so from the third task on nothing is compiled: a single old task is taken for two, the second of which
    has the weight zero. On a GPU it runs as a CUDA graph; what a step returns is then overwritten by the next.

    Args:
        model, method: what is trained, how. The model lies on `device`.
        compile: "on"; "off"; or "auto": on for a GPU, where torch.compile works.
        backend: torch.compile's.
        accumulate: micro-batches of a step, one after the other in memory; their gradients add up to those of the whole batch,
            weighted by their shares of it. Batch norm takes its statistics of each, and moves its rows as often.

    Raises:
        ArgumentError: no such choice; micro-batches of a method that does not say how its inputs are split; "on" where
            torch.compile does not work; at a step, "on" for a network or a method that torch.compile can't take in one graph
            ("auto" warns and goes on without).
    """

    def __init__(
        self,
        model: HyperModel,
        method: Method,
        device: torch.device,
        compile: str = "auto",
        backend: Backend = "inductor",
        accumulate: int = 1,
    ) -> None:
        if compile not in COMPILES:
            raise one_of("trainer.compile", compile, COMPILES)
        if accumulate > 1 and not takes_micro_batches(method):
            rule = "which has inputs or a loss of its own, but does not say how they are split (micro_batches)"
            raise ArgumentError("accumulate", accumulate, f"is not for {type(method).__name__}, {rule}; allowed with it: 1")
        self.model, self.method, self.device, self.accumulate = model, method, device, accumulate
        self.compiled = compile == "on" or (compile == "auto" and device.type != "cpu")
        if self.compiled and backend == "inductor" and not can_compile(device):
            self.compiled = _refuse(
                compile, f"torch.compile does not work for {device.type} on this machine (no C++ compiler?)"
            )
        self._buffers: bool | None = None  # whether the network has some without rows, once a compiled step has asked
        self._graphed = self.compiled and makes_cuda_graphs(backend, device)
        self._loss: Callable[..., Losses] = _loss
        if self.compiled:
            self._loss = _Whole(_loss, compile, partial(compile_step, backend=backend, device=device))

    def __call__(self, run: Run, inputs: Inputs) -> Losses:
        """A batch's losses, without graph; their gradients replace those that were there.

        Args:
            run: as it stands at this step.
            inputs: from the method.
        """
        run.optimizer.zero_grad()  # before the graphs run again, for they write where these gradients lie
        task = inputs.task
        assert not isinstance(task, Tensor)
        if self.compiled:
            self._find_buffers(inputs.x, task)
        if self.accumulate == 1:
            total, parts, logits = self._backward(inputs, task)
        else:
            total, parts, logits = self._in_turns(self.method.micro_batches(inputs, self.accumulate), task)
        further = self.method.after_backward(run, inputs)
        if self._buffers:
            self.model.buffers_by_task.settle(self.model.net, task)  # a buffer that has changed for the first time
        return Losses(sum(further.values(), total), parts | further, logits)

    def _backward(self, inputs: Inputs, task: int, share: float = 1.0) -> Losses:
        """The losses of some samples, without graph; adds their gradients, times the samples' share of the batch."""
        if self._graphed:
            torch.compiler.cudagraph_mark_step_begin()  # or a later graph would take the memory that the gradients are in
        made = replace(inputs, task=torch.full((), task, device=self.device))  # filled there: a copy would wait
        if self.compiled:
            made = _steady(made)
        kinds = made.loss, made.label_smoothing
        total, parts, logits = self._loss(
            self.method, self.model, made.x, made.y, made.task, made.active, made.tensors, made.old, made.weights, *kinds
        )
        (total if share == 1.0 else share * total).backward()
        return Losses(total.detach(), {name: part.detach() for name, part in parts.items()}, logits.detach())

    def _in_turns(self, batches: Sequence[Inputs], task: int) -> Losses:
        """The same of a batch, in its micro-batches."""
        sizes = [len(each.y) for each in batches]
        found, shares = [], [size / sum(sizes) for size in sizes]
        for each, share in zip(batches, shares, strict=True):
            own = self._backward(each, task, share)
            parts = {name: share * part for name, part in own.parts.items()}
            found.append(Losses(share * own.total, parts, own.logits.clone()))
            if self._graphed and len(found) == 1:  # the next graph writes its gradients where these lie, before they are added
                for p in self.model.parameters():
                    p.grad = None if p.grad is None else p.grad.clone()
        summed = {name: torch.stack([each.parts[name] for each in found]).sum() for name in found[0].parts}
        total = torch.stack([each.total for each in found]).sum()
        return Losses(total, summed, torch.cat([each.logits for each in found]))

    def _find_buffers(self, x: Tensor, task: int) -> None:
        if self._buffers is None:
            self.model.find_buffers(x, task)
            self._buffers = bool(self.model.buffers_by_task.shared(self.model.net))
        if self._buffers:
            self.model.buffers_by_task.look(self.model.net, task)


def _loss(
    method: Method,
    model: HyperModel,
    x: Tensor,
    y: Tensor,
    task: Tensor,
    active: Tensor | None,
    tensors: dict[str, Any],
    old: dict[str, Any],
    weights: Tensor | None,
    loss: Loss,
    label_smoothing: float,
) -> Losses:
    """The method's loss, and what teaches batch norm's statistics where layers have such a loss."""
    inputs = Inputs(x, y, task, active, tensors, old, weights, loss=loss, label_smoothing=label_smoothing)
    losses = method.loss(model, inputs)
    auxiliary = auxiliary_loss(model.net)
    if not auxiliary.requires_grad:
        return losses
    return Losses(losses.total + auxiliary, {**losses.parts, "auxiliary": auxiliary}, losses.logits)


def _steady(inputs: Inputs) -> Inputs:
    """The same inputs, so that one graph takes any number of old tasks."""
    leaves = tree_leaves(inputs.old)
    if not leaves or not inputs.grows:
        return inputs
    old, tasks = inputs.old, len(leaves[0])
    weights = leaves[0].new_ones(tasks, dtype=torch.get_default_dtype()) if inputs.weights is None else inputs.weights
    if tasks == 1:  # torch's compiler takes 1 for a constant, and would have to compile again for 2
        old = tree_map(lambda value: torch.cat([value, value]), old)
        weights = torch.cat([weights, torch.zeros_like(weights)])
    for value in (*tree_leaves(old), weights):
        torch._dynamo.mark_dynamic(value, 0)
    return replace(inputs, old=old, weights=weights)


class _Whole:
    """A function as one graph."""

    def __init__(self, function: Callable[..., Any], compile: str, compiler: Callable[..., Any]) -> None:
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        self.plain, self.setting = function, compile
        self.failures = (TorchDynamoException, FailOnRecompileLimitHit)
        self.function = compiler(function)

    def __call__(self, *args: Any) -> Any:
        try:
            return self.function(*args)
        except self.failures as error:  # while compiling: nothing has been computed yet
            _refuse(self.setting, f"not possible in one graph ({str(error).strip().partition(chr(10))[0]})")
            self.function = self.plain
        return self.plain(*args)


def _refuse(compile: str, reason: str) -> bool:
    """Tells why nothing is compiled: as an error where it was asked for, else as a warning. Always False."""
    if compile == "on":
        raise ArgumentError("trainer.compile", compile, f"{reason}; allowed: auto, off")
    warnings.warn(f"training steps are not compiled: {reason}", stacklevel=3)
    return False
