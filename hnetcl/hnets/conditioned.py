"""Hypernetworks that write from a learned task embedding."""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from hnetcl.errors import ArgumentError
from hnetcl.hnets.base import HyperNetwork, Shapes, initial_values
from hnetcl.numbers import flat_numbers

VIRTUAL_TASKS = 16  # over which scales are measured, if there are not more
DRAWS = 16  # embeddings for each task, of which it starts at the most typical
OFF_ZERO = 5  # standard errors between a mean and zero, from which on numbers are not taken for a draw around zero


class ConditionedHyperNetwork(HyperNetwork):
    """Task embeddings and the last step of writing, shared by all members that have embeddings.

    A member yields numbers r for every parameter. What is written is

        scale * r             for a parameter that its network draws at random: one scale for each parameter, with which it has,
                              over tasks and before training, the variance of that draw;
        initial + gain * scale * r    for one that its network starts at constants (norm layers, biases), so that it starts
                              there exactly: gain is learned from zero, one for each number (as in ReZero, Bachlechner et al.
                              2021), and scale * r has unit variance before training;
        initial + share * scale * r   for a centered one, so that it starts at `initial` exactly: share is learned from zero,
                              one for each parameter, and with share = 1 the change is as wide as the parameter itself.

    Centered are the parameters that the caller says (those of a pretrained network), and those whose mean is off zero by more
    than their standard deviation (as the lengths of weight normalisation are): no draw around zero would be like them. The
    first is the aim of HyperFan initialisation (Chang et al. 2020, Principled weight initialization for hypernetworks), for
    every layer, and for chunks that cut layers anywhere. Fan-in or fan-out is what the network's own draw is.

    Args:
        embedding_dim: E, the width of a task embedding. Of some draws from N(0, I) a task starts at the one whose layers come
            closest to the variance that they are to have: behind a narrow ReLU layer single draws are far from it.
        centered: names of parameters that are to be.
    """

    start: Tensor
    center: Tensor | None
    scale: Tensor
    level: Tensor

    def __init__(
        self,
        shapes: Shapes,
        num_tasks: int,
        embedding_dim: int,
        initial: Mapping[str, Tensor] | None = None,
        centered: Collection[str] = (),
    ) -> None:
        super().__init__(shapes, num_tasks, initial)
        if embedding_dim < 1:
            raise ArgumentError("embedding_dim", embedding_dim, "must be at least 1")
        values = initial_values(self.shapes) if initial is None else initial
        flat = {name: flat_numbers(values[name]) for name in self.shapes}
        self.constant = {name: _has_two_values(value) for name, value in flat.items()}
        self.centered = [n for n, v in flat.items() if not self.constant[n] and (n in centered or _off_zero(v))]
        self.names = list(self.shapes)  # in the order of `numbers`
        self.register_buffer("start", torch.cat([torch.zeros(0), *(v for n, v in flat.items() if self.constant[n])]))
        widths = [torch.ones(()) if self.constant[name] else value.std().float() for name, value in flat.items()]
        self.register_buffer("scale", torch.stack(widths))
        self.register_buffer("level", torch.ones_like(self.scale))  # of r^2, before training
        self.register_buffer("center", torch.cat([flat[name] for name in self.centered]) if self.centered else None)
        self.gain = nn.Parameter(torch.zeros(len(self.start)))
        self.share = nn.Parameter(torch.zeros(len(self.centered))) if self.centered else None
        self.embedding = nn.Parameter(torch.randn(num_tasks, embedding_dim))

    @property
    def embeddings(self) -> Tensor:
        return self.embedding

    def task_parameters(self) -> list[nn.Parameter]:
        return [self.embedding]

    def fresh_entries(self) -> dict[str, Tensor]:
        draws = torch.randn_like(self.embedding[:1].expand(DRAWS, -1))
        best = self._most_typical(self.mean_squares(draws)[None])
        return {"embedding": draws[None].take_along_dim(best, 1).squeeze(1)}

    @abstractmethod
    def numbers(self, embeddings: Tensor) -> list[Tensor]:
        """r of every parameter: [B, E] -> [B, n] each, in the order of `names`; tensors of its own at every call."""

    @abstractmethod
    def mean_squares(self, embeddings: Tensor) -> Tensor:
        """The mean of r^2 of every parameter: [B, E] -> [B, len(names)]."""

    @torch.no_grad()
    def calibrate(self, names: Sequence[str] | None = None) -> None:
        """Sets the scales. A member's constructor ends with it.

        Args:
            names: in the order of `numbers`, where that is not the order of `shapes`.
        """
        if names is not None:
            constants = [name for name in self.names if self.constant[name]]
            starts = self._by_name(self.start, constants)
            self.start = torch.cat([self.start[:0], *(starts[name] for name in names if self.constant[name])])
            self.scale = self.scale[[self.names.index(name) for name in names]]
            self.names = list(names)
        draws = torch.randn(max(VIRTUAL_TASKS, self.num_tasks), DRAWS, self.embedding.shape[1])
        squares = self.mean_squares(draws.flatten(0, 1)).unflatten(0, draws.shape[:2])
        self.level.copy_(squares.sqrt().mean((0, 1)).square().clamp_min(1e-12))
        best = self._most_typical(squares)
        self.embedding.copy_(draws.take_along_dim(best, 1).squeeze(1)[: self.num_tasks])
        self.scale /= squares.take_along_dim(best, 1).mean((0, 1)).clamp_min(1e-12).sqrt()

    def varying(self) -> list[int]:
        """Places in `names` of the parameters that start apart for different tasks."""
        return [i for i, name in enumerate(self.names) if not self.constant[name] and name not in self.centered]

    def centers(self) -> dict[str, Tensor]:
        """Where the centered parameters start, by name, flat."""
        return {} if self.center is None else self._by_name(self.center, self.centered)

    def shares(self) -> dict[str, Tensor]:
        """Of the centered parameters, by name."""
        return {} if self.share is None else dict(zip(self.centered, self.share.unbind(), strict=True))

    def _by_name(self, numbers: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The numbers of some parameters, which lie end to end."""
        return dict(zip(names, numbers.split([self.shapes[name].numel() for name in names]), strict=True))

    def _most_typical(self, squares: Tensor) -> Tensor:
        """The draw for each task whose worst parameter is nearest to its level: [T, D, n] -> [T, 1, 1]."""
        off = (squares[..., self.varying()] / self.level[self.varying()]).clamp_min(1e-9).log().abs()
        worst = torch.cat([off, torch.zeros_like(squares[..., :1])], 2).amax(2)  # of none: the first draw
        return worst.argmin(1)[:, None, None]

    def written(self, tasks: Tensor) -> dict[str, Tensor]:
        return self.scaled(self.numbers(self.embedding.index_select(0, tasks)))

    def scaled(self, numbers: Sequence[Tensor]) -> dict[str, Tensor]:
        """The parameters, by name, of r in the order of `names`: [B, n] each; without a graph they take the place of r."""
        named = dict(zip(self.names, numbers, strict=True))
        times = torch.mul if torch.is_grad_enabled() else Tensor.mul_
        sizes = [r.shape[1] for name, r in named.items() if self.constant[name]]
        starts = zip(self.start.split(sizes), self.gain.split(sizes), strict=True)
        centers, shares = self.centers(), self.shares()
        written = {}
        for (name, r), scale in zip(named.items(), self.scale.unbind(), strict=True):
            own = times(r, scale)
            if self.constant[name]:
                own = torch.addcmul(*next(starts), own)
            elif name in shares:
                own = torch.addcmul(centers[name], shares[name], own)
            written[name] = own
        return written


def _has_two_values(value: Tensor) -> bool:
    """At most: gamma of a d-component norm starts at two."""
    return not value.numel() or bool(((value == value.min()) | (value == value.max())).all())


def _off_zero(value: Tensor) -> bool:
    """Whether a mean is far from zero, in standard deviations of the numbers and of itself."""
    mean, width = value.mean().abs(), value.std()
    return bool((mean > width) & (mean * value.numel() ** 0.5 > OFF_ZERO * width))
