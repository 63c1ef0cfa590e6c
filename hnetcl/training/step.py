"""A training step, compiled where that is asked for."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from hnetcl.bn import auxiliary_loss
from hnetcl.choices import COMPILES
from hnetcl.errors import ArgumentError, one_of
from hnetcl.kernels.compiled import Backend, can_compile, compile_step, makes_cuda_graphs
from hnetcl.methods import Method
from hnetcl.methods.base import Write
from hnetcl.model import HyperModel
from hnetcl.modules import auxiliary_logits, main_logits

AUXILIARY_WEIGHT = 0.3  # of the loss of auxiliary classifiers, as in Szegedy et al. 2015 (arXiv:1409.4842), section 5

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


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

    Loss and penalty share one forward of the hypernetwork and one backward, where the method can compute its penalty so
    (`Method.beside`). Otherwise the penalty comes second, for it may look at the loss's gradients (lookahead).

    Compiled, hypernetwork -> parameters -> logits -> cross entropy and auxiliary loss is one graph, and so are the rows of the
    penalty, in the same graph where they can be. No graph depends on a task's number or on how many old tasks there are, so
    from the third task on nothing is compiled. On a GPU they run as CUDA graphs; what a step returns is then overwritten by
    the next.

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
        self._buffers: bool | None = None  # whether the network has some without rows, once a compiled step has asked
        self._graphed = self.compiled and makes_cuda_graphs(backend, device)
        self._loss: Callable[..., tuple[Tensor, Tensor | None, Tensor]] = _loss
        by_task: Compiler = _unchanged
        if self.compiled:
            compiler = partial(compile_step, backend=backend, device=device)
            self._loss = _Whole(_loss, compile, compiler)
            by_task = partial(_ByTask, compile=compile, compiler=compiler, single=method.single_row)
        self._loss_and_rows: Callable[..., tuple[Tensor, Tensor | None, Tensor, Tensor]] = by_task(_loss_and_rows)
        method.compile(by_task)

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
        if self.compiled:
            if self._buffers is None:
                self.model.find_buffers(x, task)
                self._buffers = bool(self.model.buffers_by_task.shared(self.model.net))
            if self._buffers:
                self.model.buffers_by_task.look(self.model.net, task)
        beside = self.method.beside(self.model.hnet)
        penalty: Tensor | None
        if beside is None:
            loss, auxiliary, logits = self._loss(self.model, x, y, number)
            (loss if auxiliary is None else loss + auxiliary).backward()
            penalty = self.method.penalty(self.model.hnet)
            if penalty is not None:
                penalty.backward()
        else:
            loss, auxiliary, logits, rows = self._loss_and_rows(
                beside.write, self.model, x, y, number, beside.by_task, beside.common
            )
            penalty = beside.total(rows)
            (loss + penalty if auxiliary is None else loss + auxiliary + penalty).backward()
        if self._buffers:
            self.model.buffers_by_task.settle(self.model.net, task)  # a buffer that has changed for the first time
        return Losses(loss.detach(), None if penalty is None else penalty.detach(), logits.detach())


def _loss(model: HyperModel, x: Tensor, y: Tensor, task: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Cross entropy, auxiliary loss and logits."""
    loss, logits = _cross_entropy(model(x, task), y)
    return loss, _auxiliary(model), logits


def _loss_and_rows(
    write: Write, model: HyperModel, x: Tensor, y: Tensor, task: Tensor, by_task: list[Tensor], common: list[Tensor]
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """`_loss`, and rows of the penalty."""
    params, rows = write(model.hnet, task, by_task, common)
    loss, logits = _cross_entropy(model.run(params, x, task), y)
    return loss, _auxiliary(model), logits, rows


def _auxiliary(model: HyperModel) -> Tensor | None:
    """What teaches statistics; None where no layer has such a loss, so that nothing is computed for it."""
    loss = auxiliary_loss(model.net)
    return loss if loss.requires_grad else None


def _cross_entropy(outputs: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of a network's logits, with a share of its auxiliary classifiers' where it has some; and the logits."""
    logits = main_logits(outputs)
    loss = F.cross_entropy(logits, y)
    for auxiliary in auxiliary_logits(outputs):
        loss = loss + AUXILIARY_WEIGHT * F.cross_entropy(auxiliary, y)
    return loss, logits


class _Whole:
    """A function as one graph."""

    def __init__(self, function: Callable[..., Any], compile: str, compiler: Compiler) -> None:
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


class _ByTask(_Whole):
    """A function of tensors of B tasks and of tensors that are the same for all, its last arguments, compiled once for all B.

    It returns rows [B], or rows as the last of several things.

    Args:
        single: B is always 1.
    """

    def __init__(self, function: Callable[..., Any], compile: str, compiler: Compiler, single: bool) -> None:
        super().__init__(function, compile, compiler)
        self.single = single

    def __call__(self, *args: Any) -> Any:
        if self.single:
            return super().__call__(*args)
        *own, by_task, common = args
        tasks = len(by_task[0])
        if tasks == 1:  # torch's compiler takes 1 for a constant, and would have to compile again for 2
            by_task = [torch.cat([each, each]) for each in by_task]
        for each in by_task:
            torch._dynamo.mark_dynamic(each, 0)
        found = super().__call__(*own, by_task, common)
        return (*found[:-1], found[-1][:tasks]) if isinstance(found, tuple) else found[:tasks]


def _refuse(compile: str, reason: str) -> bool:
    """Tells why nothing is compiled: as an error where it was asked for, else as a warning. Always False."""
    if compile == "on":
        raise ArgumentError("trainer.compile", compile, f"{reason}; allowed: auto, off")
    warnings.warn(f"training steps are not compiled: {reason}", stacklevel=3)
    return False


def _unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    return function
