"""Gradients of single samples with respect to what the tasks have in common."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from hnetcl.model import HyperModel
from hnetcl.modules import main_logits

HELD_AT_ONCE = 2**25  # values of gradients, 128 MB in float32


class SampleGradients:
    """Of a network in evaluation mode, with the task's own statistics; no batch size changes what it gives.

    Args:
        model, task: whose parameters.
        active: the logits that come into question, bool [K]; None for all.
    """

    def __init__(self, model: HyperModel, task: int, active: Tensor | None = None) -> None:
        self.model, self.task, self.active = model, task, active
        self.params = {name: p.detach() for name, p in model.common_parameters().items()}
        self.at_once = max(1, HELD_AT_ONCE // max(1, sum(value.numel() for value in self.params.values())))

    def logits(self, x: Tensor, params: dict[str, Tensor] | None = None) -> Tensor:
        """[N, K'] of those that come into question."""
        params = self.params if params is None else params
        own = {name.removeprefix("hnet."): p for name, p in params.items() if name.startswith("hnet.")}
        rest = {name.removeprefix("net."): p for name, p in params.items() if name.startswith("net.")}
        written = functional_call(self.model.hnet, own, (self.task,))
        found = main_logits(self.model.run(written | rest, x, self.task))
        return found if self.active is None else found[:, self.active]

    def of(self, objective: Callable[..., Tensor], x: Tensor, *given: Tensor) -> Iterator[dict[str, Tensor]]:
        """By name [n, ...], of `at_once` samples after the other.

        Args:
            objective: logits [1, K'] and what is given of a sample [1, ...] -> 0-dim.
            x: [N, ...]; given: tensors [N, ...].
        """

        def value(params: dict[str, Tensor], x: Tensor, *own: Tensor) -> Tensor:
            return objective(self.logits(x[None], params), *(each[None] for each in own))

        per_sample = vmap(grad(value), in_dims=(None, *(0 for _ in range(1 + len(given)))))
        for some in zip(*(each.split(self.at_once) for each in (x, *given)), strict=True):
            yield per_sample(self.params, *some)

    def zeros(self) -> dict[str, Tensor]:
        """By name."""
        return {name: torch.zeros_like(value) for name, value in self.params.items()}
