"""Ends a training whose values are no longer finite, before they reach the model or a file."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hnetcl.bn import batchnorm_layers, learned_values
from hnetcl.errors import DivergedError
from hnetcl.methods import Inputs, Losses, Method
from hnetcl.model import HyperModel
from hnetcl.modes import evaluation_mode


class Watch:
    """Looks at loss, penalty and gradients between backward and the optimizer's step, in every step of a task.

        watch = Watch(model, task, optimizer, device)
        losses = step(run, inputs)
        norm = watch.look(losses, inputs)       # on a CPU raises here
        optimizer.step()

    On a CPU the values are read at once. On a GPU that would be to wait for it. There they set a latch on the device, which
    fused optimizers look at in their step (as they do under torch's GradScaler), so that from the first bad step on nothing
    moves; the latch is read where values travel to the host anyway: call `read` there. Optimizers without a fused step
    (adagrad, and rmsprop) know no latch: with them the values are read in every step, which waits for the GPU.

    Args:
        model: trained.
        task: the current one, for the message.
        optimizer: of all that is trained.
        device: of the model.
        latch: whether to wait for `read`; None is as said above.
        first: steps of the task that were done before.

    Attributes:
        found: the latch, 0-dim float32: 1 from the first bad step on.
        good: steps before that, 0-dim float32.
    """

    def __init__(
        self,
        model: HyperModel,
        task: int,
        optimizer: Optimizer,
        device: torch.device,
        latch: bool | None = None,
        first: int = 0,
    ) -> None:
        self.model, self.task = model, task
        self.parameters = list(model.parameters())
        fused = bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        self.latch = fused and device.type != "cpu" if latch is None else latch
        self.found, self.good = torch.zeros((), device=device), torch.full((), float(first), device=device)
        self.newest: tuple[Losses, Inputs] | None = None
        self.steps = first
        if self.latch:
            optimizer.found_inf = self.found  # type: ignore[attr-defined]

    def look(self, losses: Losses, inputs: Inputs) -> Tensor:
        """The Euclidean norm of all gradients, 0-dim.

        Args:
            losses, inputs: of the step.

        Raises:
            DivergedError: the loss, a part of it or that norm is not finite, and they are read at once.
        """
        self.steps, self.newest = self.steps + 1, (losses, inputs)
        norm = _norm([p.grad for p in self.parameters if p.grad is not None])
        numbers = [*losses.parts.values(), norm]
        if self.latch:
            bad = torch.stack(numbers).isfinite().logical_not().any()
            self.found.copy_(torch.maximum(self.found, bad.float()))
            self.good.add_(1 - self.found)
        elif not all(math.isfinite(float(number)) for number in numbers):
            raise self._error(self.steps)
        return norm

    def read(self) -> None:
        """Reads the latch, which waits for the device.

        Raises:
            DivergedError: a step since the task's start was bad.
        """
        if self.latch and float(self.found):
            raise self._error(int(self.good) + 1)

    def close(self) -> None:
        """After the task's last step: looks at what it made of the model.

        Raises:
            DivergedError: a parameter, a row of statistics or a logit of the newest batch is not finite.
        """
        self.check()
        if self.newest is not None:
            inputs = self.newest[1]
            with evaluation_mode(self.model):
                fault = first_bad_layer(self.model, inputs.x, inputs.task)
            if fault is not None:
                raise DivergedError(self.task, None, fault)

    def check(self, step: int | None = None) -> None:
        """After an optimizer's step: looks at what it made of the model.

        Args:
            step: which; None for the task's last.

        Raises:
            DivergedError: a parameter or a row of statistics is not finite.
        """
        self.read()
        for name, value in learned_values(self.model).items():
            if not value.isfinite().all():
                raise DivergedError(self.task, step, name)

    def _error(self, step: int) -> DivergedError:
        """Looks for what was bad in the newest step: where the latch was set before, its parameters are still the same."""
        assert self.newest is not None
        losses, inputs = self.newest
        fault = None
        bad = [name for name, part in losses.parts.items() if not part.isfinite()]
        if "loss" in bad:
            fault = first_bad_layer(self.model, inputs.x, inputs.task) or "the loss"
        elif bad:
            fault = f"the method's {bad[0]}"
        else:
            gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
            for name, gradient in gradients.items():
                if not gradient.norm().isfinite():
                    fault = f"the gradient of {name} (or its norm)"
                    break
        return DivergedError(self.task, step, fault or "the loss, the penalty or a gradient")


def _norm(gradients: list[Tensor]) -> Tensor:
    """Of all together; in one call where they are of one dtype, on a CPU by its faster products."""
    if any(gradient.dtype != torch.float32 for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    if gradients and gradients[0].is_cpu:
        return torch.stack([torch.dot(flat, flat) for flat in (g.reshape(-1) for g in gradients)]).sum().sqrt()
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm


def check_learned(method: Method, task: int) -> None:
    """Looks at what a method keeps of a task.

    Raises:
        DivergedError: it is not finite.
    """
    for name, value in method.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise DivergedError(task, None, f"what the method keeps ({name})")


@torch.no_grad()
def check_sound(model: HyperModel) -> None:
    """Looks at a model whose tensors come from a file.

    Raises:
        ValueError: what learns, or a row of statistics, is not finite; or batch norm could not divide by a row's variances.
    """
    for name, value in learned_values(model).items():
        if not value.isfinite().all():
            raise ValueError(f"{name} is not finite")
    for name, layer in batchnorm_layers(model.net).items():
        for row in range(layer.num_stats):
            variance = layer.get_stats(row)[1]
            if variance.ndim == 1:
                sound = bool((variance + layer.eps > 0).all())
            else:
                shifted = variance + layer.eps * torch.eye(variance.shape[-1], dtype=variance.dtype, device=variance.device)
                sound = not bool(torch.linalg.cholesky_ex(shifted).info.any())
            if not sound:
                raise ValueError(f"the variances of {name}, row {row}, are not positive")


@torch.no_grad()
def first_bad_layer(model: HyperModel, x: Tensor, task: int | Tensor) -> str | None:
    """The first layer of the main network, in the order of its calls, whose output is not finite, and its bad parameters.

    None where all logits are finite.
    """
    found: list[str] = []
    names = {module: name for name, module in model.net.named_modules()}

    def see(module: nn.Module, _: Any, output: Any) -> None:
        if not found and not all(value.isfinite().all() for value in _tensors(output)):
            bad = [name for name, value in module.named_parameters(recurse=False) if not value.isfinite().all()]
            kind = type(module).__name__
            of = f"layer {names[module]} ({kind})" if names[module] else f"the network ({kind})"
            found.append(f"the output of {of}" + (f", like its {' and '.join(bad)}," if bad else ""))

    handles = [module.register_forward_hook(see) for module in names]
    try:
        logits = model(x, task)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found and not logits.isfinite().all() else None


def _tensors(value: Any) -> Iterator[Tensor]:
    """The values in what a layer returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)
