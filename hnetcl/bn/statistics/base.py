"""What every statistics mode answers about a batch-norm layer, and what it asks of the layer."""

from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from hnetcl.algebra import Algebra

Row = tuple[Tensor, Tensor, Tensor]
"""The three tensors of a statistics row: two for mean and covariance, as the mode keeps them, and the number of batches."""


class Layer(Protocol):
    """What a mode asks of its layer; shapes as in `BatchNormLayer`."""

    algebra: Algebra
    momentum: float | None
    eps: float
    location: nn.Parameter  # where the mode is `written`
    factor: nn.Parameter

    @property
    def triangle(self) -> torch.Size: ...

    def read(self, stats_id: int | Tensor | None) -> list[Tensor]: ...

    def row_statistics(self, stats_id: int | Tensor | None) -> tuple[Tensor, Tensor]: ...

    def write(self, stats_id: int | Tensor | None, *values: Tensor) -> None: ...


class StatisticsMode:
    """By which mean and covariance a layer normalizes, and who keeps them. One object without state per layer.

    The properties say what a mode does, so that nobody has to ask for its name; the methods are called only where they apply.

    Attributes:
        name: as it is given to the layer.
        row_names: the tensors of a row; empty where the layer keeps none.
        learns_rows: whether rows are parameters, of a task's own.
        written: whether the layer has the parameters `location` and `factor`, for a hypernetwork to write; see `gaussian`.
        trains_by_batch: whether training normalizes by the batch's statistics.
        evaluates_by_batch: whether evaluation does so too.
        uses_statistics: whether the layer normalizes by any statistics at all.
        has_auxiliary_loss: whether training teaches statistics by a loss of their own.
    """

    name: ClassVar[str]
    row_names: ClassVar[tuple[str, ...]] = ()
    learns_rows: ClassVar[bool] = False
    written: ClassVar[bool] = False
    trains_by_batch: ClassVar[bool] = True
    evaluates_by_batch: ClassVar[bool] = False
    uses_statistics: ClassVar[bool] = True
    has_auxiliary_loss: ClassVar[bool] = False

    @property
    def keeps_rows(self) -> bool:
        """Whether the layer keeps a row of statistics per task."""
        return bool(self.row_names)

    def row(self, layer: Layer, mean: Tensor, cov: Tensor, count: Tensor) -> Row:
        """A row that says exactly this: mean [C], regular covariance [Q, d, d], number of batches [].

        Leading axes, the same for all three, are kept. Asked only where the mode keeps rows.
        """
        raise NotImplementedError

    def decode(self, row: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The mean [C], and the variance [C] or covariance [Q, d, d], that a row stands for, with their graph."""
        mean, var, *_ = row
        return mean, var

    def fresh_row(self, layer: Layer, mean: Tensor, var: Tensor, count: Tensor) -> Row:
        """A row as it starts, of mean 0, variance 1 or covariance I, and count 0. Asked only where the mode keeps rows."""
        return mean, var, count

    def given_row(self, layer: Layer, mean: Tensor, var: Tensor, count: Tensor) -> Row:
        """A row with the running statistics of a layer of torch's, [C], [C] and []. Asked only where the mode keeps rows."""
        return mean, var, count

    def update(self, layer: Layer, stats_id: int | Tensor | None, mean: Tensor, cov: Tensor) -> None:
        """Moves a row towards a batch's mean [C] and unbiased covariance [Q, d, d]. Asked only where the mode keeps rows.

        Raises:
            ValueError: a vector of rows was chosen.
        """
        raise NotImplementedError

    def evaluation(self, layer: Layer, stats_id: int | Tensor | None) -> tuple[Tensor, Tensor] | None:
        """The mean [C] and covariance [Q, d, d] that evaluation uses, with their graph; None where it uses none."""
        return None

    def auxiliary_loss(self, layer: Layer, stats_id: int | Tensor | None, mean: Tensor, cov: Tensor) -> Tensor:
        """The loss [] of a training forward, after `update` with the same arguments. Asked only where there is one."""
        raise NotImplementedError


def read_one(layer: Layer, stats_id: int | Tensor | None) -> Row:
    """A row without its graph, to be moved.

    Raises:
        ValueError: a vector of rows was chosen.
    """
    first, second, count = (value.detach() for value in layer.read(stats_id))
    if count.ndim:
        raise ValueError("a row for each sample can be chosen in evaluation only")
    return first, second, count
