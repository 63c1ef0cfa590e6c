"""Hypernetworks that write from a learned task embedding."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hnetcl.errors import ArgumentError
from hnetcl.hnets.base import HyperNetwork, Shapes, initial_values


class ConditionedHyperNetwork(HyperNetwork):
    """Task embeddings and the last step of writing, shared by all members that have embeddings.

    A member yields numbers of unit variance, r. What is written is

        std * r               for a parameter that its network draws at random, std being that draw's standard deviation;
        initial + gain * r    for one that its network starts at constants (norm layers, biases), so that it starts there
                              exactly: gain is learned from zero, one for each number (as in ReZero, Bachlechner et al. 2021).

    Args:
        embedding_dim: E, the width of a task embedding; embeddings start at N(0, I).
    """

    std: Tensor
    start: Tensor
    constant: Tensor

    def __init__(self, shapes: Shapes, num_tasks: int, embedding_dim: int, initial: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(shapes, num_tasks, initial)
        if embedding_dim < 1:
            raise ArgumentError("embedding_dim", embedding_dim, "must be at least 1")
        values = initial_values(self.shapes) if initial is None else initial
        flat = [values[name].detach().float().flatten() for name in self.shapes]
        random = [len(value.unique()) > 2 for value in flat]  # gamma of a d-component norm starts at two values
        pairs = list(zip(flat, random, strict=True))
        self.register_buffer("std", torch.cat([v.std().expand_as(v) if r else torch.zeros_like(v) for v, r in pairs]))
        self.register_buffer("start", torch.cat([torch.zeros_like(v) if r else v for v, r in pairs]))
        constant = torch.cat([torch.full_like(v, not r) for v, r in pairs]).nonzero().squeeze(1)
        self.register_buffer("constant", constant)
        self.gain = nn.Parameter(torch.zeros(len(constant)))
        self.embedding = nn.Parameter(torch.randn(num_tasks, embedding_dim))

    @property
    def embeddings(self) -> Tensor:
        return self.embedding

    def task_parameters(self) -> list[nn.Parameter]:
        return [self.embedding]

    def add_task(self) -> None:
        fresh = torch.randn_like(self.embedding[:1])
        self.embedding = nn.Parameter(torch.cat([self.embedding.detach(), fresh]))
        self.num_tasks += 1

    def flat(self, tasks: Tensor) -> Tensor:
        scale = self.std.index_copy(0, self.constant, self.gain)
        return torch.addcmul(self.start, scale, self.write(self.embedding.index_select(0, tasks)))

    @abstractmethod
    def write(self, embeddings: Tensor) -> Tensor:
        """[B, E] -> [B, P], of unit variance before training."""


def unit_mlp(width: int, hidden: Sequence[int], out: int) -> nn.Sequential:
    """Linear layers with ReLUs between, initialised so that unit-variance input gives unit-variance output (He et al. 2015).

    Raises:
        ArgumentError: a hidden width below 1.
    """
    layers: list[nn.Module] = []
    gain = 1.0  # of the mean square, by which a layer makes up for the ReLU before it
    for next_width in (*hidden, out):
        if next_width < 1:
            raise ArgumentError("hidden", list(hidden), "widths must be at least 1")
        linear = nn.Linear(width, next_width)
        nn.init.normal_(linear.weight, std=(gain / width) ** 0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
        width, gain = next_width, 2.0
    return nn.Sequential(*layers[:-1])
