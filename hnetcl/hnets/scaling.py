"""How parameters start: what is measured of a network's initial values, and of a generator before training."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hnetcl.hnets.base import Shapes
from hnetcl.numbers import flat_numbers

VIRTUAL_TASKS = 16  # over which scales are measured, if there are not more
DRAWS = 16  # embeddings for each task, of which it starts at the most typical
OFF_ZERO = 5  # standard errors between a mean and zero, from which on values are not taken for a draw around zero

MeanSquares = Callable[[Tensor], Tensor]
"""Embeddings [B, E] -> the mean of the squared raw outputs of every parameter [B, parameters]."""


class MeasuredShapes(dict[str, torch.Size]):
    """Name -> shape, and how the network starts its parameters.

    Args:
        shapes: name -> shape.
        values: the network's initial values; None where they are not known, and then nothing is measured.
        given: whether every task is to start at these values exactly.

    Attributes:
        constant: names of those that start at constants, as norm layers and biases do.
        centered: names of those for which every task starts at the network's own value exactly: with `given` all that are not
            constant, else those whose mean is more off zero than that of a draw around zero (lengths of weight norm).
        widths: name -> standard deviation of the values, 1 for constants.
    """

    def __init__(self, shapes: Shapes, values: Mapping[str, Tensor] | None = None, given: bool = False) -> None:
        super().__init__({name: torch.Size(shape) for name, shape in shapes.items()})
        flat = {} if values is None else {name: flat_numbers(values[name]) for name in self}
        self.constant = {name for name, value in flat.items() if _has_two_values(value)}
        drawn = {name: value for name, value in flat.items() if name not in self.constant}
        self.centered = {name for name, value in drawn.items() if given or _off_zero(value)}
        self.widths = dict.fromkeys(self, 1.0) | {name: float(value.std().float()) for name, value in drawn.items()}

    @property
    def num_trained(self) -> int:
        """Trainable values with which a hypernetwork moves constant and centered parameters away from their start."""
        return sum(self[name].numel() for name in self.constant) + len(self.centered)

    @property
    def num_generated(self) -> int:
        """P."""
        return sum(shape.numel() for shape in self.values())


def measured_shapes(shapes: Shapes) -> MeasuredShapes:
    """The shapes with what was measured of them, if a hypernetwork gave them; without, where a user did."""
    return shapes if isinstance(shapes, MeasuredShapes) else MeasuredShapes(shapes)


class Start(NamedTuple):
    """Of a hypernetwork with P' parameters to generate, before training.

    Args:
        embeddings: typical ones [T, E].
        level: of the mean squares over all draws [P'].
        root_mean_square: of the raw outputs of typical embeddings [P'].
    """

    embeddings: Tensor
    level: Tensor
    root_mean_square: Tensor


@torch.no_grad()
def typical_start(mean_squares: MeanSquares, num_tasks: int, embedding_dim: int, varying: Sequence[int]) -> Start:
    """Draws embeddings from N(0, I) and takes a typical one for each task.

    Args:
        mean_squares: of a generator.
        num_tasks: T.
        embedding_dim: E.
        varying: places of the parameters that start apart for different tasks.
    """
    draws = torch.randn(max(VIRTUAL_TASKS, num_tasks), DRAWS, embedding_dim)
    squares = mean_squares(draws.flatten(0, 1)).unflatten(0, draws.shape[:2])
    level = squares.sqrt().mean((0, 1)).square().clamp_min(1e-12)
    best = _most_typical(squares, level, varying)
    typical = squares.take_along_dim(best, 1).mean((0, 1)).clamp_min(1e-12).sqrt()
    return Start(draws.take_along_dim(best, 1).squeeze(1)[:num_tasks], level, typical)


@torch.no_grad()
def typical_embedding(mean_squares: MeanSquares, embeddings: Tensor, level: Tensor, varying: Sequence[int]) -> Tensor:
    """An embedding [1, E] for one more task than `embeddings` [T, E] are, the most typical of some draws."""
    draws = torch.randn_like(embeddings[:1].expand(DRAWS, -1))
    best = _most_typical(mean_squares(draws)[None], level, varying)
    return draws[None].take_along_dim(best, 1).squeeze(1)


def _most_typical(squares: Tensor, level: Tensor, varying: Sequence[int]) -> Tensor:
    """The draw for each task whose worst parameter is nearest to its level: [T, D, P'] -> [T, 1, 1]."""
    off = (squares[..., varying] / level[varying]).clamp_min(1e-9).log().abs()
    worst = torch.cat([off, torch.zeros_like(squares[..., :1])], 2).amax(2)  # of none: the first draw
    return worst.argmin(1)[:, None, None]


def _has_two_values(value: Tensor) -> bool:
    """At most: gamma of a d-component norm starts at two."""
    return not value.numel() or bool(((value == value.min()) | (value == value.max())).all())


def _off_zero(value: Tensor) -> bool:
    """Whether a mean is far from zero, in standard deviations of the values and of itself."""
    mean, width = value.mean().abs(), value.std()
    return bool((mean > width) & (mean * value.numel() ** 0.5 > OFF_ZERO * width))
