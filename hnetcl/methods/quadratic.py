"""What methods share that hold parameters where they were: a quadratic penalty, by importance."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hnetcl.methods.base import Draw, Inputs, Losses, Method, Run
from hnetcl.model import HyperModel


class QuadraticPenalty(Method):
    r"""Adds to the loss, over all parameters that the tasks have in common,

    .. math:: s \sum_p \Omega_p (\theta_p - \theta^*_p)^2

    and nothing in the first task. A task's own parameters, such as its head or its embedding, don't change later and need none.

    Args:
        strength: s.

    Attributes:
        importance: Omega by name; a subclass fills it at the end of a task.
        anchor: theta* by name.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def inputs(self, run: Run, draw: Draw) -> Inputs:
        inputs = super().inputs(run, draw)
        if self.importance and self.strength:
            names = self._names(run.model)
            inputs.tensors = {"importance": [self.importance[n] for n in names], "anchor": [self.anchor[n] for n in names]}
        return inputs

    def loss(self, model: HyperModel, inputs: Inputs) -> Losses:
        task = super().loss(model, inputs)
        if not inputs.tensors:
            return task
        parameters = model.common_parameters()
        held = zip(self._names(model), inputs.tensors["importance"], inputs.tensors["anchor"], strict=True)
        parts = [(importance * (parameters[name] - anchor).square()).sum() for name, importance, anchor in held]
        penalty = self.strength * torch.stack(parts).sum()
        return Losses(task.total + penalty, {**task.parts, "penalty": penalty}, task.logits)

    def gather(self, run: Run, importance: Mapping[str, Tensor], kept: float = 1.0) -> None:
        """Adds a task's importance to `kept` times the old, and holds the parameters where they are now."""
        for name, p in run.model.common_parameters().items():
            old = self.importance.get(name)
            self.importance[name] = importance[name] if old is None else kept * old + importance[name]
            self.anchor[name] = p.detach().clone()

    def state_dict(self) -> dict[str, Tensor]:
        kinds = {"importance": self.importance, "anchor": self.anchor}
        return {f"{kind}.{name}": value for kind, values in kinds.items() for name, value in values.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for kind in ("importance", "anchor"):
            names = [key for key in state if key.startswith(f"{kind}.")]
            setattr(self, kind, {key.removeprefix(f"{kind}."): state[key] for key in names})

    def task_state(self) -> dict[str, Tensor]:
        return {}

    def start_task(self, run: Run) -> None:
        for values in (self.importance, self.anchor):
            values.update({name: value.to(run.generator.device) for name, value in values.items()})

    def _names(self, model: HyperModel) -> list[str]:
        """The parameters that are held: those with an importance that still learn."""
        return [name for name in model.common_parameters() if name in self.importance]
