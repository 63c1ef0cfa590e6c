"""What methods share that hold parameters where they were: a quadratic penalty, by importance."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hnetcl.methods.base import Inputs, Method, Run


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

    @torch.no_grad()
    def after_backward(self, run: Run, inputs: Inputs) -> dict[str, Tensor]:
        """Adds the penalty's gradient, which is written out: autograd would pass over all parameters three times as often."""
        found = []
        for name, p in run.model.common_parameters().items() if self.strength else ():
            if name in self.importance:
                move = p - self.anchor[name]
                pull = self.importance[name] * move
                found.append(torch.dot(pull.reshape(-1), move.reshape(-1)))
                p.grad = 2 * self.strength * pull if p.grad is None else p.grad.add_(pull, alpha=2 * self.strength)
        return {"penalty": self.strength * torch.stack(found).sum()} if found else {}

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
