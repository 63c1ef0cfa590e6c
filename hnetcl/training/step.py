"""A training step, compiled where that is asked for."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from hnetcl.choices import COMPILES
from hnetcl.errors import ArgumentError, one_of
from hnetcl.hnets import HyperNetwork
from hnetcl.kernels.compiled import can_compile, compile_whole
from hnetcl.methods import Method
from hnetcl.methods.base import Rows
from hnetcl.model import HyperModel

Backend = str | Callable[..., Any]


class Losses(NamedTuple):
    """What a step found, on the device and with no graph.

    Args:
        loss: cross entropy of the batch, 0-dim.
        penalty: the method's, 0-dim, or None.
        logits: [N, K].
    """

    loss: Tensor
    penalty: Tensor | None
    logits: Tensor


class TrainingStep:
    """Leaves the gradients of loss and penalty in the parameters; the optimizer's step is the caller's.

        step = TrainingStep(model, method, device)
        method.start_task(model.hnet, task, optimizer, generator)
        losses = step(x, y, task, optimizer)
        optimizer.step()

    Compiled, it is two functions, each one graph with one backward: hypernetwork -> parameters -> logits -> cross entropy, and
    what the method has compiled of its penalty. They are two because a method may look at the loss's gradients before it
    computes the penalty. Neither depends on a task's number or on how many old tasks there are, so from the third task on
    nothing is compiled. On a GPU both run as CUDA graphs; what a step returns is then overwritten by the next.

    Args:
        model, method: what is trained, how. The model lies on `device`.
        compile: "on"; "off"; or "auto": on for a GPU, where torch.compile works.
        backend: torch.compile's.

    Raises:
        ArgumentError: no such choice, or "on" where torch.compile does not work; at a step, "on" for a network or a method that
            torch.compile can't take in one graph ("auto" warns and goes on without).
    """

    def __init__(
        self, model: HyperModel, method: Method, device: torch.device, compile: str = "auto", backend: Backend = "inductor"
    ) -> None:
        if compile not in COMPILES:
            raise one_of("trainer.compile", compile, COMPILES)
        self.model, self.method, self.device = model, method, device
        self.compiled = compile == "on" or (compile == "auto" and device.type != "cpu")
        if self.compiled and backend == "inductor" and not can_compile(device):
            self.compiled = _refuse(
                compile, f"torch.compile does not work for {device.type} on this machine (no C++ compiler?)"
            )
        self._graphed = self.compiled and device.type == "cuda" and backend == "inductor"
        self._loss: Callable[..., tuple[Tensor, Tensor]] = _loss
        if self.compiled:
            self._loss = _Whole(_loss, compile, backend, self._graphed)
        method.compile(partial(_Rows, compile=compile, backend=backend, graphed=self._graphed) if self.compiled else _unchanged)

    def __call__(self, x: Tensor, y: Tensor, task: int, optimizer: Optimizer) -> Losses:
        """A batch's losses; their gradients replace those that were there.

        Args:
            x: the network's input [N, ...].
            y: labels [N].
            task: the batch's.
            optimizer: of all that is trained.
        """
        if self._graphed:
            torch.compiler.cudagraph_mark_step_begin()  # or the penalty's graph would take the memory that the gradients are in
        optimizer.zero_grad()  # before the graphs run again, for they write where these gradients lie
        number = torch.full((), task, device=self.device)  # filled there: a copy would wait for the GPU
        loss, logits = self._loss(self.model, x, y, number)
        if self.method.wants_gradients:
            loss.backward()
            penalty = self.method.penalty(self.model.hnet)
            if penalty is not None:
                penalty.backward()
        else:  # one backward pass is less work than two
            penalty = self.method.penalty(self.model.hnet)
            (loss if penalty is None else loss + penalty).backward()
        return Losses(loss.detach(), None if penalty is None else penalty.detach(), logits.detach())


def _loss(model: HyperModel, x: Tensor, y: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
    logits: Tensor = model(x, task)
    return F.cross_entropy(logits, y), logits


class _Whole:
    """A function as one graph."""

    def __init__(self, function: Callable[..., Any], compile: str, backend: Backend, graphed: bool) -> None:
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        self.plain, self.setting = function, compile
        self.failures = (TorchDynamoException, FailOnRecompileLimitHit)
        options = {"mode": "reduce-overhead"} if graphed else {}
        self.function = compile_whole(function, backend=backend, **options)

    def __call__(self, *args: Any) -> Any:
        try:
            return self.function(*args)
        except self.failures as error:  # while compiling: nothing has been computed yet
            _refuse(self.setting, f"not possible in one graph ({str(error).strip().partition(chr(10))[0]})")
            self.function = self.plain
        return self.plain(*args)


class _Rows(_Whole):
    """A function of B tasks (see `Method.compile`), compiled once for all B."""

    def __call__(self, hnet: HyperNetwork, by_task: list[Tensor], common: list[Tensor]) -> Tensor:
        tasks = len(by_task[0])
        if tasks == 1:  # torch's compiler takes 1 for a constant, and would have to compile again for 2
            by_task = [torch.cat([each, each]) for each in by_task]
        for each in by_task:
            torch._dynamo.mark_dynamic(each, 0)
        rows: Tensor = super().__call__(hnet, by_task, common)
        return rows[:tasks]


def _refuse(compile: str, reason: str) -> bool:
    """Tells why nothing is compiled: as an error where it was asked for, else as a warning. Always False."""
    if compile == "on":
        raise ArgumentError("trainer.compile", compile, f"{reason}; allowed: auto, off")
    warnings.warn(f"training steps are not compiled: {reason}", stacklevel=3)
    return False


def _unchanged(function: Rows) -> Rows:
    return function
