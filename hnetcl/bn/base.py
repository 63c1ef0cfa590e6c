"""What every norm layer has: an algebra, Gamma and beta, rows of statistics."""

import math
from collections.abc import Callable
from operator import index
from typing import Any, Self, SupportsIndex

import torch
from torch import Tensor, nn

from hnetcl.algebra import Algebra, as_algebra
from hnetcl.errors import ArgumentError, one_of
from hnetcl.kernels.autograd import is_mapped
from hnetcl.kernels.backends import BACKENDS
from hnetcl.kernels.layout import sum_dtype
from hnetcl.kernels.whitening import WHITENINGS

BATCH = "batch"  # in place of a row: normalize by the batch's own statistics, in evaluation too


class NormLayer(nn.Module):
    """Gamma, beta, and tensors with a leading axis of rows, one row per task.

    Statistics stay in float32 where the module goes to half precision (`.bfloat16()`, `.half()`), and `.double()` widens them;
    a memory format is for images, so they have none.

    Args:
        num_features, algebra, whitening, affine, eps, backend: as in `BatchNormLayer`.

    Raises:
        ArgumentError: C is not a positive multiple of d, or an argument is outside its set.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self, num_features: int, algebra: str | Algebra, whitening: str | None, affine: bool, eps: float, backend: str
    ) -> None:
        nn.Module.__init__(self)  # the family of torch's layers, which `BatchNormLayer` joins, is built otherwise
        self.algebra = as_algebra(algebra)
        self.num_numbers = self.algebra.numbers(num_features, "num_features")
        whitening = whitening or ("cholesky" if self.algebra.dim == 4 else "zca")
        if whitening not in WHITENINGS:
            raise one_of("whitening", whitening, WHITENINGS)
        if not 0 < eps < math.inf:
            raise ArgumentError("eps", eps, "must be positive and finite")
        if backend not in BACKENDS:
            raise one_of("backend", backend, BACKENDS)
        self.num_features, self.whitening = num_features, whitening
        self.affine, self.eps, self.backend = affine, eps, backend
        self.row: int | Tensor | str | None = None  # set by `using_task`
        self.row_names: tuple[str, ...] = ()
        self.register_parameter("weight", nn.Parameter(self._initial_weight()) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_features)) if affine else None)

    def behind(self, conv: nn.Module) -> list[nn.Module]:
        """The layers that a network has where this one normalizes a convolution's output."""
        return [conv, self]

    # ------------------------------------------------------------------ rows

    def fresh_row(self) -> dict[str, Tensor]:
        """The layer's row tensors as they start, [1, ...] each, by name; empty where it keeps no rows."""
        return {}

    def _standard_row(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean 0, variance 1 or covariance I, and count 0, [1, ...] each."""
        c, d, q = self.num_features, self.algebra.dim, self.num_numbers
        dtype = sum_dtype(torch.get_default_dtype())
        var = torch.ones(1, c, dtype=dtype) if d == 1 else torch.eye(d, dtype=dtype).repeat(1, q, 1, 1)
        return torch.zeros(1, c, dtype=dtype), var, torch.zeros(1, dtype=torch.long)

    def _open_first_row(self, learnable: bool = False) -> None:
        for name, value in self.fresh_row().items():
            if learnable and value.is_floating_point():
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
            self.row_names += (name,)

    @property
    def rows(self) -> dict[str, Tensor]:
        """The layer's row tensors, [rows, ...] each, by name."""
        return {name: getattr(self, name) for name in self.row_names}

    @property
    def num_stats(self) -> int:
        """Rows of statistics; 0 where none are kept."""
        return next((len(value) for value in self.rows.values()), 0)

    def checkpoint_stats(self) -> None:
        """Opens a fresh row after the newest, on its device and in its dtype.

        Raises:
            ValueError: the layer keeps no rows.
        """
        self._require_rows()
        for name, fresh in self.fresh_row().items():
            old: Tensor = getattr(self, name)
            self._set(name, torch.cat([old.detach(), fresh.to(old)]))

    def keep_only(self, row: SupportsIndex) -> None:
        """Drops all rows but one, which becomes row 0.

        Raises:
            ValueError: there is no such row.
        """
        row = self._existing(row)
        for name, value in self.rows.items():
            self._set(name, value.detach()[row : row + 1].clone())

    def choose(self, row: int | Tensor | str | None) -> int | Tensor | str | None:
        """What `using_task` stores: a row that is known to exist, as a tensor, for a compiled step is then the same for all.

        Raises:
            ValueError: there is no such row.
        """
        if isinstance(row, str) and row != BATCH:
            raise ValueError(f"expected a row's number or {BATCH!r}, got {row!r}")
        if row is None or isinstance(row, str | Tensor) or not self.num_stats:
            return row
        device = next(iter(self.rows.values())).device
        return torch.full((), self._existing(row), device=device)  # filled there: a copy would wait for the GPU

    def read(self, stats_id: int | Tensor | None) -> list[Tensor]:
        """Copies of a row's tensors, with their graph; of a vector of N rows, with a leading axis of N.

        A view would tie what is saved for backward to all rows: a step of one task would spoil the graph of another.

        Raises:
            ValueError: several rows and none chosen, or no such row (in a vector: IndexError; on a GPU: a failing kernel).
        """
        row = self._row(stats_id)
        if isinstance(row, int):
            return [value[row].clone() for value in self.rows.values()]
        flat = row.reshape(-1)  # index_select, for value[tensor] would read the index on the host
        many = [value.index_select(0, flat) for value in self.rows.values()]
        return many if row.ndim else [value.squeeze(0) for value in many]

    def get_stats(self, stats_id: int) -> tuple[Tensor, Tensor]:
        """Copies of a row: mean [C] and variance [C] (d = 1) or covariance [Q, d, d].

        Raises:
            ValueError: there is no such row.
        """
        self._require_rows()
        mean, cov = self.row_statistics(self._existing(stats_id))
        return mean.detach(), (cov.flatten() if self.algebra.dim == 1 else cov).detach()

    def row_statistics(self, stats_id: int | Tensor | None) -> tuple[Tensor, Tensor]:
        """A row's mean [C] and covariance [Q, d, d]; of a vector of N rows, [N, ...]."""
        mean, var = self.decode(self.read(stats_id))
        d = self.algebra.dim
        return mean, var.reshape(*mean.shape[:-1], self.num_numbers, d, d)

    def decode(self, row: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The mean and covariance that the tensors of a row stand for."""
        mean, var, *_ = row
        return mean, var

    def write(self, stats_id: int | Tensor | None, *values: Tensor) -> None:
        """Overwrites a row."""
        row = self._row(stats_id)
        with torch.no_grad():
            for target, value in zip(self.rows.values(), values, strict=True):
                if isinstance(row, int):
                    target[row] = value.to(target.dtype)
                else:
                    target.index_copy_(0, row.reshape(1), value[None].to(target.dtype))

    def _row(self, stats_id: int | Tensor | None) -> int | Tensor:
        row = self.row if stats_id is None else stats_id
        self._require_rows()
        if row is None and self.num_stats == 1:
            return 0
        if row is None or isinstance(row, str):
            raise ValueError(
                f"{self.num_stats} rows of statistics and none chosen: pass stats_id or enter `with using_task(module, k)`"
            )
        unread = torch.compiler.is_compiling() or is_mapped(row if isinstance(row, Tensor) else None)
        if isinstance(row, Tensor) and (row.ndim or not row.is_cpu or unread):
            return row
        return self._existing(row)

    def _existing(self, row: SupportsIndex) -> int:
        row = int(index(row))  # of a tensor or one of numpy's integers
        if not 0 <= row < self.num_stats:
            raise ValueError(f"stats_id={row}: there are rows 0 to {self.num_stats - 1}")
        return row

    def _require_rows(self) -> None:
        if not self.row_names:
            raise ValueError(f"{type(self).__name__}({self.extra_repr()}) keeps no rows of statistics")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `.to()` and its like do to every tensor."""
        kept = {id(t) for own in self.statistics_tensors().values() for t in (own, own.grad) if t is not None}

        def apply(t: Tensor) -> Tensor:
            flat = t.flatten(1) if t.ndim > 3 else t  # in which torch sees no image
            new = fn(flat)
            if id(t) in kept and new.dtype != sum_dtype(new.dtype):
                new = flat.to(new.device, sum_dtype(new.dtype))
            return t if new is flat else new.reshape(t.shape)

        super()._apply(apply, recurse)
        return self

    def statistics_tensors(self) -> dict[str, Tensor]:
        """The rows and statistics that are written, by name: what is not to lose precision."""
        return self.rows

    def _set(self, name: str, value: Tensor) -> None:
        old = getattr(self, name)
        setattr(self, name, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Takes as many rows as the state has, so that a layer built for one task loads the statistics of many.

        Tensors that the state lacks, as that of another mode does, get as many: theirs and fresh ones.
        """
        rows, fresh, number = self.rows, self.fresh_row(), self.num_stats
        for name, own in rows.items():
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.ndim == own.ndim and saved.shape[1:] == own.shape[1:]:
                number = len(saved)
        for name, own in rows.items():
            if len(own) != number:
                more = fresh[name].to(own).expand(max(0, number - len(own)), *own.shape[1:])
                self._set(name, torch.cat([own.detach()[:number], more]))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # ------------------------------------------------------------------ Gamma and beta

    @property
    def weights(self) -> dict[str, Tensor]:
        """The layer's own parameters."""
        return dict(self.named_parameters(recurse=False))

    @property
    def param_shapes(self) -> dict[str, torch.Size]:
        """Shapes of `weights`."""
        return {name: value.shape for name, value in self.weights.items()}

    @property
    def hyper_shapes(self) -> dict[str, torch.Size]:
        """Shapes of all that `forward` takes from outside."""
        return {"weight": self.triangle, "bias": torch.Size([self.num_features])}

    @property
    def triangle(self) -> torch.Size:
        """Of the numbers of a symmetric or triangular matrix per number; [C] for d = 1."""
        d = self.algebra.dim
        return torch.Size([self.num_features] if d == 1 else [self.num_numbers, d * (d + 1) // 2])

    def gamma(self, weight: Tensor | None = None) -> Tensor | None:
        """The symmetric [Q, d, d] of which a weight, or the layer's own, is the upper triangle; None without either."""
        weight = self.weight if weight is None else weight
        if weight is None:
            return None
        d = self.algebra.dim
        if d == 1:
            return weight.reshape(-1, 1, 1)
        places = [(i, j) for i in range(d) for j in range(i, d)]
        upper = dict(zip(places, weight.unbind(1), strict=True))
        return torch.stack([upper[min(i, j), max(i, j)] for i in range(d) for j in range(d)], 1).reshape(-1, d, d)

    def _initial_weight(self) -> Tensor:
        d = self.algebra.dim
        if d == 1:
            return torch.ones(self.num_features)
        row, column = torch.triu_indices(d, d)
        return torch.where(row == column, d**-0.5, 0.0).repeat(self.num_numbers, 1)

    def _check(self, x: Tensor, shape: torch.Size, **given: Tensor | None) -> None:
        """Refuses a shape, of what is normalized, and tensors from outside that do not fit the layer."""
        if not 2 <= len(shape) <= 5 or shape[1] != self.num_features or x.is_complex():
            wanted = f"expected a real x of shape [N, {self.num_features}, ...] with 2 to 5 axes"
            raise ValueError(f"{wanted}, got {tuple(shape)} of {x.dtype}")
        shapes = self.hyper_shapes
        for name, value in given.items():
            if value is not None and value.shape != shapes[name]:
                raise ValueError(f"{name} must have shape {tuple(shapes[name])}, got {tuple(value.shape)}")

    def _is_complex(self, x: Tensor) -> bool:
        """Whether x holds complex numbers [N, Q, *S] that this layer takes as they are."""
        if not x.is_complex() or self.algebra.dim != 2:
            return False
        if not 2 <= x.ndim <= 5 or x.shape[1] != self.num_numbers:
            wanted = f"expected a complex x of shape [N, {self.num_numbers}, ...] with 2 to 5 axes"
            raise ValueError(f"{wanted}, got {tuple(x.shape)} of {x.dtype}")
        return True
