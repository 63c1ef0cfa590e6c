"""The batch-norm layer for real, complex and quaternion numbers."""

import math
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import Tensor, nn

from hnetcl.algebra import Algebra, as_algebra
from hnetcl.choices import STATS, WHITENINGS
from hnetcl.errors import ArgumentError, one_of
from hnetcl.kernels.backends import CLOSED_FORM, Kernel
from hnetcl.kernels.layout import sum_dtype

BATCH = "batch"  # in place of a row: normalize by the batch's own statistics, in evaluation too


class BatchNormLayer(nn.Module):
    r"""Batch norm over numbers of d components, with a row of running statistics per task.

    .. math:: y = \Gamma f(V) (x - \mu) + \beta

    For each of the Q = C / d numbers, mu is the mean in R^d and V the d x d covariance, over batch and space; f whitens
    (V^(-1/2) or the inverse Cholesky factor). In training mu and V are the batch's, in evaluation those of the chosen row.

        bn = BatchNormLayer(64, algebra="quaternion")
        bn.checkpoint_stats()                # a second row, for a second task
        y = bn(x, stats_id=1)                # x [N, 64, *S]

    Args:
        num_features: C, the real channels, component-major.
        algebra: "real", "complex" or "quaternion": d = 1, 2, 4.
        stats: "tracked" keeps running statistics; "frozen" uses mean 0 and covariance I always, so that only Gamma and beta
            act; "batch" uses the batch's own statistics in evaluation too.
        whitening: "zca" or "cholesky"; None means cholesky for quaternions, else zca.
        affine: whether Gamma and beta exist. `weight` is [C] for d = 1, else [Q, d (d + 1) / 2]: the upper triangle of Gamma
            row by row, which starts at I / sqrt(d) so that E|y|^2 = 1. `bias` is [C].
        momentum: weight of the newest batch in the running statistics; None is the cumulative average.
        eps: added once to the covariance's diagonal where it is used, never stored.

    Attributes:
        running_mean: [rows, C].
        running_var: the unbiased variance [rows, C] (d = 1) or covariance [rows, Q, d, d].
        num_batches_tracked: [rows].

    Raises:
        ArgumentError: C is not a positive multiple of d, or an argument is outside its set.

    Sources: Ioffe & Szegedy 2015 (real); Trabelsi et al. 2018, section 3.5 (complex); Gaudet & Maida 2018, section 3.4
    (quaternion).
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        algebra: str | Algebra = "real",
        stats: str = "tracked",
        whitening: str | None = None,
        affine: bool = True,
        momentum: float | None = 0.1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.algebra = as_algebra(algebra)
        self.num_numbers = self.algebra.numbers(num_features, "num_features")
        if stats not in STATS:
            raise one_of("stats", stats, STATS)
        whitening = whitening or ("cholesky" if self.algebra.dim == 4 else "zca")
        if whitening not in WHITENINGS:
            raise one_of("whitening", whitening, WHITENINGS)
        if momentum is not None and not 0 <= momentum <= 1:
            raise ArgumentError("momentum", momentum, "must lie in [0, 1], or be None for the cumulative average")
        if not 0 < eps < math.inf:
            raise ArgumentError("eps", eps, "must be positive and finite")
        self.num_features, self.stats, self.whitening = num_features, stats, whitening
        self.affine, self.momentum, self.eps = affine, momentum, eps
        self.row: int | Tensor | str | None = None  # set by `using_task`

        self.weight = nn.Parameter(self._initial_weight()) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        fresh = self._fresh_row() if stats == "tracked" else (None, None, None)
        for name, value in zip(("running_mean", "running_var", "num_batches_tracked"), fresh, strict=True):
            self.register_buffer(name, value)

    @property
    def num_stats(self) -> int:
        """Rows of running statistics; 0 where none are kept."""
        return 0 if self.running_mean is None else len(self.running_mean)

    def checkpoint_stats(self) -> None:
        """Opens a fresh row (mean 0, covariance I) after the newest, on its device and in its dtype.

        Raises:
            ValueError: the layer keeps no running statistics.
        """
        mean, var, count = self._buffers_or_raise()
        fresh = (f.to(old) for f, old in zip(self._fresh_row(), (mean, var, count), strict=True))
        self.running_mean, self.running_var, self.num_batches_tracked = (
            torch.cat([old, new]) for old, new in zip((mean, var, count), fresh, strict=True)
        )

    def get_stats(self, stats_id: int) -> tuple[Tensor, Tensor]:
        """Copies of a row: mean [C] and variance [C] (d = 1) or covariance [Q, d, d].

        Raises:
            ValueError: there is no such row.
        """
        mean, var, _ = self._buffers_or_raise()
        row = self._row(stats_id)
        return mean[row].clone(), var[row].clone()

    @property
    def weights(self) -> dict[str, Tensor]:
        """The layer's own parameters."""
        return dict(self.named_parameters(recurse=False))

    @property
    def param_shapes(self) -> dict[str, torch.Size]:
        """Shapes of `weight` and `bias`; empty without affine."""
        return {name: shape for name, shape in self.hyper_shapes.items() if name in self.weights}

    @property
    def hyper_shapes(self) -> dict[str, torch.Size]:
        """Shapes of all that `forward` takes from outside: gamma and beta, and a row of statistics."""
        c, d, q = self.num_features, self.algebra.dim, self.num_numbers
        return {
            "weight": torch.Size([c] if d == 1 else [q, d * (d + 1) // 2]),
            "bias": torch.Size([c]),
            "running_mean": torch.Size([c]),
            "running_var": torch.Size([c] if d == 1 else [q, d, d]),
        }

    def forward(
        self,
        x: Tensor,
        *,
        stats_id: int | Tensor | None = None,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Normalizes x.

        Args:
            x: [N, C, *S] with up to three axes in S.
            stats_id: the row, an int or a 0-dim tensor; left out where there is one row or `using_task` chose one.
            running_mean, running_var: statistics to use in place of a row, [C] and [C] or [Q, d, d]. In evaluation gradients
                reach them; in training plain tensors are updated in place, as a row would be (by 0.1 where momentum is None,
                for they come without a count).
            weight, bias: used in place of the layer's own.

        Raises:
            ValueError: the shape of x, one value per channel in training, several rows and none chosen, or an
                unknown row (a tensor that lies outside raises IndexError).
        """
        given = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
        return self.normalize_by(self.kernel(x), x, x.shape, stats_id=stats_id, **given)

    def kernel(self, x: Tensor) -> Kernel:
        """What computes the layer's output for such an x."""
        return CLOSED_FORM

    def normalize_by(
        self,
        kernel: Kernel,
        x: Tensor,
        shape: torch.Size,
        *,
        stats_id: int | Tensor | None = None,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """`forward` through a kernel that may do more with x than normalize it.

        Args:
            kernel: its functions take x as it is.
            shape: [N, C, *S], of what is normalized.
        """
        self._check(x, shape, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
        gamma = self._gamma(self.weight if weight is None else weight)
        beta = self.bias if bias is None else bias
        options: dict[str, Any] = {"d": self.algebra.dim, "eps": self.eps, "whitening": self.whitening}
        given = running_mean is not None

        if self.stats == "frozen" and not given:
            mean, cov = _standard(self.algebra.dim, self.num_numbers, x)
            frozen: dict[str, Any] = {"d": self.algebra.dim, "eps": 0.0, "whitening": "naive"}  # of which W is I exactly
            return kernel.normalize(x, mean, cov, gamma, beta, **frozen)
        own_batch = self.training or (not given and (self.stats == "batch" or self.row == BATCH))
        if not own_batch:
            if running_mean is None or running_var is None:
                running_mean, running_var, _ = self._read(stats_id)
            cov = running_var.reshape(self.num_numbers, self.algebra.dim, self.algebra.dim)
            return kernel.normalize(x, running_mean, cov, gamma, beta, **options)

        count = shape.numel() // self.num_features
        if count < 2:
            raise ValueError(f"batch statistics need more than one value per channel, got x of shape {tuple(shape)}")
        y, mean, cov = kernel.batch_norm(x, gamma, beta, **options)
        if self.training:
            cov = cov * (count / (count - 1))
            if running_mean is not None and running_var is not None:
                _update_given(running_mean, running_var, mean, cov, 0.1 if self.momentum is None else self.momentum)
            elif self.stats == "tracked" and self.row != BATCH:
                self._update(stats_id, mean, cov)
        return y

    def _check(self, x: Tensor, shape: torch.Size, **given: Tensor | None) -> None:
        if not 2 <= len(shape) <= 5 or shape[1] != self.num_features or x.is_complex():
            raise ValueError(
                f"expected a real x of shape [N, {self.num_features}, ...] with 2 to 5 axes, got {tuple(shape)} of {x.dtype}"
            )
        if (given["running_mean"] is None) != (given["running_var"] is None):
            raise ValueError("running_mean and running_var must be given together")
        shapes = self.hyper_shapes
        for name, value in given.items():
            if value is not None and value.shape != shapes[name]:
                raise ValueError(f"{name} must have shape {tuple(shapes[name])}, got {tuple(value.shape)}")

    def _initial_weight(self) -> Tensor:
        d = self.algebra.dim
        if d == 1:
            return torch.ones(self.num_features)
        row, column = torch.triu_indices(d, d)
        triangle = torch.where(row == column, d**-0.5, 0.0)
        return triangle.repeat(self.num_numbers, 1)

    def _gamma(self, weight: Tensor | None) -> Tensor | None:
        """The symmetric [Q, d, d] of which `weight` is the upper triangle."""
        if weight is None:
            return None
        d = self.algebra.dim
        if d == 1:
            return weight.reshape(-1, 1, 1)
        upper = dict(zip(combinations_with_replacement(range(d), 2), weight.unbind(1), strict=True))
        return torch.stack([upper[min(i, j), max(i, j)] for i in range(d) for j in range(d)], 1).reshape(-1, d, d)

    def _fresh_row(self) -> tuple[Tensor, Tensor, Tensor]:
        d, q = self.algebra.dim, self.num_numbers
        var = torch.ones(1, q) if d == 1 else torch.eye(d).repeat(1, q, 1, 1)
        return torch.zeros(1, self.num_features), var, torch.zeros(1, dtype=torch.long)

    def _buffers_or_raise(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            raise ValueError(f"stats={self.stats!r} keeps no rows of running statistics")
        return self.running_mean, self.running_var, self.num_batches_tracked

    def _row(self, stats_id: int | Tensor | None) -> int | Tensor:
        row = self.row if stats_id is None else stats_id
        if row is None and self.num_stats == 1:
            return 0
        if row is None or isinstance(row, str):
            raise ValueError(
                f"{self.num_stats} rows of statistics and none chosen: pass stats_id or enter `with using_task(module, k)`"
            )
        if isinstance(row, int) and not 0 <= row < self.num_stats:
            raise ValueError(f"stats_id={row}: there are rows 0 to {self.num_stats - 1}")
        return row

    def _read(self, stats_id: int | Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        row = self._row(stats_id)
        buffers = self._buffers_or_raise()
        if isinstance(row, int):
            return buffers[0][row], buffers[1][row], buffers[2][row]
        index = row.reshape(1)  # index_select, for buffer[tensor] would read the index on the host
        mean, var, count = (buffer.index_select(0, index).squeeze(0) for buffer in buffers)
        return mean, var, count

    @torch.no_grad()
    def _update(self, stats_id: int | Tensor | None, mean: Tensor, cov: Tensor) -> None:
        row = self._row(stats_id)
        old_mean, old_var, old_count = self._read(row)
        count = old_count + 1
        dtype = old_mean.dtype
        share = count.to(dtype).reciprocal() if self.momentum is None else old_mean.new_full((), self.momentum)
        new_mean = torch.lerp(old_mean, mean.to(dtype), share)
        new_var = torch.lerp(old_var, cov.reshape(old_var.shape).to(dtype), share)
        for buffer, value in zip(self._buffers_or_raise(), (new_mean, new_var, count), strict=True):
            if isinstance(row, int):
                buffer[row] = value
            else:
                buffer.index_copy_(0, row.reshape(1), value[None])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Takes as many rows as the state has, so that a layer built for one task loads the statistics of many."""
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            own, saved = getattr(self, name), state_dict.get(prefix + name)
            if own is not None and saved is not None and own.shape[1:] == saved.shape[1:]:
                setattr(self, name, own.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, algebra={self.algebra.name}, stats={self.stats}, whitening={self.whitening}, "
            f"affine={self.affine}, momentum={self.momentum}, eps={self.eps}, num_stats={self.num_stats}"
        )


def _standard(d: int, q: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean 0 [C] and covariance I [Q, d, d] for x."""
    dtype = sum_dtype(x.dtype)
    return torch.zeros(d * q, dtype=dtype, device=x.device), torch.eye(d, dtype=dtype, device=x.device).expand(q, d, d)


@torch.no_grad()
def _update_given(running_mean: Tensor, running_var: Tensor, mean: Tensor, cov: Tensor, momentum: float) -> None:
    """Moves a caller's plain buffers; what carries a gradient is never written to."""
    for old, new in ((running_mean, mean), (running_var, cov)):
        if not (old.requires_grad or old.grad_fn is not None):
            old.lerp_(new.reshape(old.shape).to(old.dtype), momentum)
