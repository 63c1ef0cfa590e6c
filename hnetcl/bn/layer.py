"""The batch-norm layer for real, complex and quaternion numbers."""

from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from hnetcl.algebra import Algebra, AlgebraName
from hnetcl.bn.base import BATCH
from hnetcl.bn.family import TorchsFamily
from hnetcl.bn.pending import PendingLosses
from hnetcl.bn.statistics import MODES
from hnetcl.errors import ArgumentError, one_of
from hnetcl.kernels.all_reduce import Group
from hnetcl.kernels.autograd import learns
from hnetcl.kernels.backends import Kernel, select
from hnetcl.kernels.layout import complex_to_real, real_to_complex, sum_dtype
from hnetcl.registry import register


@register("bn", "layer")
class BatchNormLayer(TorchsFamily):
    r"""Batch norm over numbers of d components, with a row of running statistics per task.

    .. math:: y = \Gamma f(V) (x - \mu) + \beta

    For each of the Q = C / d numbers, mu is the mean in R^d and V the d x d covariance, over batch and space; f whitens
    (V^(-1/2) or the inverse Cholesky factor). In training mu and V are the batch's, in evaluation those of the chosen row.

        bn = BatchNormLayer(64, algebra="quaternion")
        bn.checkpoint_stats()                # a second row, for a second task
        y = bn(x, stats_id=1)                # x [N, 64, *S]

    To torch it is one of its batch-norm layers (`isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)`): code that freezes
    them in evaluation mode, groups their parameters, or calls `torch.optim.swa_utils.update_bn` means these too.

    | stats | rows | batch statistics used in training / evaluation | what evaluation uses |
    |---|---|---|---|
    | tracked | running averages | yes / no | the row |
    | learnable | parameters, which start at the first batch's statistics; a loss then teaches them | yes / no | the row |
    | frozen | none | no / no | mean 0 and covariance I: only Gamma and beta act |
    | batch | none | yes / yes | the batch |
    | generated | none; the parameters `location` and `factor`, for a hypernetwork to write | no / no | what was written |
    | distilled | running averages, which a loss teaches `location` and `factor` | yes / no | what was written |

    In the modes with a loss the caller adds it to his own: see `auxiliary_loss`.

    Args:
        num_features: C, the real channels, component-major.
        algebra: "real", "complex" or "quaternion": d = 1, 2, 4.
        stats: see the table.
        whitening: "zca", "cholesky", or "naive" (each component on its own); None means cholesky for quaternions, else zca.
        affine: whether Gamma and beta exist. `weight` is [C] for d = 1, else [Q, d (d + 1) / 2]: the upper triangle of Gamma
            row by row, which starts at I / sqrt(d) so that E|y|^2 = 1. `bias` is [C].
        momentum: weight of the newest batch in the running averages; None is the cumulative average.
        eps: added once to the covariance's diagonal where it is used, never stored.
        sync: take batch statistics in training over all ranks of torch.distributed, where it is up.
        backend: "closed_form", "compiled", "reference", or "auto": compiled where the input is large enough to repay it.
        auxiliary_weight: of the loss that teaches learnable and distilled statistics; the caller adds it, see `auxiliary_loss`.

    Attributes:
        running_mean: [rows, C].
        running_var: the unbiased variance [rows, C] (d = 1) or covariance [rows, Q, d, d].
        num_batches_tracked: [rows].
        track_running_stats: whether training updates the rows; true where there are any, and may be switched as in torch.
        given: the row that a converted layer came with: every further row opens as it, however far training has gone since,
            for the weights came with it too. Copies and pickles keep it; a state dict holds the rows only. None: rows open
            afresh.
        running_location, running_factor: learnable rows; location, factor: written statistics; see `gaussian`.
        statistics_mode: what `stats` names, which says all that depends on it; see `bn.statistics`.
        auxiliary_limit: how many training forwards may pass before `auxiliary_loss` takes their losses; after that an error is
            raised. It is 100; set more for a layer that runs more often than that in one forward of a network.
        pending_losses: of those forwards.
        process_group: the ranks that `sync` means; None for all.

    Raises:
        ArgumentError: C is not a positive multiple of d, or an argument is outside its set.

    Sources: Ioffe & Szegedy 2015 (real); Trabelsi et al. 2018, section 3.5 (complex); Gaudet & Maida 2018, section 3.4
    (quaternion).
    """

    def __init__(
        self,
        num_features: int,
        *,
        algebra: AlgebraName | Algebra = "real",
        stats: Literal["tracked", "learnable", "frozen", "batch", "generated", "distilled"] = "tracked",
        whitening: Literal["zca", "cholesky", "naive"] | None = None,
        affine: bool = True,
        momentum: Annotated[float, Ge(0), Le(1)] | None = 0.1,
        eps: Annotated[float, Gt(0)] = 1e-5,
        sync: bool = False,
        backend: Literal["auto", "reference", "closed_form", "compiled"] = "auto",
        auxiliary_weight: Annotated[float, Ge(0)] = 10.0,
    ) -> None:
        super().__init__(num_features, algebra, whitening, affine, eps, backend)
        if stats not in MODES:
            raise one_of("stats", stats, MODES)
        if momentum is not None and not 0 <= momentum <= 1:
            raise ArgumentError("momentum", momentum, "must lie in [0, 1], or be None for the cumulative average")
        if sync and backend == "reference":
            raise ArgumentError("backend", backend, "can't be given with sync=true")
        self.statistics_mode, self.momentum, self.sync = MODES[stats](), momentum, sync
        self.process_group: Group | None = None
        self.auxiliary_weight, self.auxiliary_limit = auxiliary_weight, 100
        self.pending_losses = PendingLosses()
        self.given = None
        self._open_first_row(learnable=self.statistics_mode.learns_rows)
        self.track_running_stats = self.statistics_mode.keeps_rows
        if self.statistics_mode.written:
            self.location = nn.Parameter(torch.zeros(num_features))
            self.factor = nn.Parameter(torch.zeros(self.triangle))

    @property
    def stats(self) -> str:
        """The name of the statistics mode."""
        return self.statistics_mode.name

    def fresh_row(self) -> dict[str, Tensor]:
        """Mean 0 and covariance I, or the given row."""
        if self.given is not None:
            return dict(self.given)
        mode = self.statistics_mode
        if not mode.keeps_rows:
            return {}
        return dict(zip(mode.row_names, mode.fresh_row(self, *self._standard_row()), strict=True))

    def decode(self, row: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self.statistics_mode.decode(row)

    @property
    def hyper_shapes(self) -> dict[str, torch.Size]:
        """Shapes of all that `forward` takes from outside: gamma and beta, and a row of statistics."""
        c, d, q = self.num_features, self.algebra.dim, self.num_numbers
        var = torch.Size([c] if d == 1 else [q, d, d])
        return {"weight": self.triangle, "bias": torch.Size([c]), "running_mean": torch.Size([c]), "running_var": var}

    def evaluation_statistics(self, stats_id: int | Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """The mean [C] and covariance [Q, d, d] that evaluation uses, with their graph; of a vector of N rows, [N, ...].

        None where evaluation uses none (frozen) or the batch's.

        Raises:
            ValueError: several rows and none chosen, or no such row.
        """
        return None if self._wants_batch() else self.statistics_mode.evaluation(self, stats_id)

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
            x: [N, C, *S] with up to three axes in S; for d = 2 also complex [N, Q, *S], as is then what is returned. Without
                any values the output is empty, and no row is touched.
            stats_id: the row, an int or a 0-dim tensor; left out where there is one row or `using_task` chose one. In
                evaluation also a vector of N rows, one for each sample.
            running_mean, running_var: statistics to use in place of a row, [C] and [C] or [Q, d, d]. In evaluation gradients
                reach them; in training plain tensors are updated in place, as a row would be (by 0.1 where momentum is None,
                for they come without a count).
            weight, bias: used in place of the layer's own.

        Raises:
            ValueError: the shape of x, one value per channel in training, several rows and none chosen, or an unknown row.
        """
        given: dict[str, Any] = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
        if self._is_complex(x):
            return real_to_complex(BatchNormLayer.forward(self, complex_to_real(x), stats_id=stats_id, **given))
        return self.normalize_by(self.kernel(x), x, x.shape, stats_id=stats_id, **given)

    def kernel(self, x: Tensor) -> Kernel:
        """What computes the layer's output for such an x."""
        return select(self.backend, x, self.algebra.dim)

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
        """`forward` through a kernel that may do more with x than normalize it: only its functions look at x.

        Args:
            kernel: its functions are called as those of `kernels.reference`.
            shape: [N, C, *S], of what is normalized.
        """
        self._check(x, shape, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
        d, q = self.algebra.dim, self.num_numbers
        gamma, beta = self.gamma(weight), self.bias if bias is None else bias
        options: dict[str, Any] = {"d": d, "eps": self.eps, "whitening": self.whitening}
        given = None
        if running_mean is not None and running_var is not None:
            given = running_mean, running_var
        elif running_mean is not None or running_var is not None:
            raise ValueError("running_mean and running_var must be given together")

        mode = self.statistics_mode
        if not given and not mode.uses_statistics:
            return self._affine(kernel, x, gamma, beta)
        batch = self.training if given else self._wants_batch() or (self.training and mode.trains_by_batch)
        if not batch:
            used = given or self.evaluation_statistics(stats_id)
            assert used is not None
            mean, cov = used[0], used[1].reshape(*used[0].shape[:-1], q, d, d)
            if mean.ndim == 1:
                return kernel.normalize(x, mean, cov, gamma, beta, **options)
            return self._by_sample(kernel, x, mean, cov, gamma, beta, options)

        total: int | Tensor = shape.numel() // self.num_features
        if self.training and (group := self._ranks()) is not None:
            y, mean, cov, total = kernel.batch_norm(x, gamma, beta, group=group, **options)
            assert isinstance(total, Tensor)
            total = total.clamp_min(2)  # the ranks are trusted to have more than one value, for to ask would wait for a GPU
        elif total == 0:
            return self._affine(kernel, x, gamma, beta)  # empty, and no statistics of anything
        elif total < 2:
            raise ValueError(f"batch statistics need more than one value per channel, got x of shape {tuple(shape)}")
        else:
            y, mean, cov, _ = kernel.batch_norm(x, gamma, beta, **options)
        if self.training:
            mean, cov = mean.detach(), cov.detach() * (total / (total - 1))  # to move or teach a row leaves x as it is
            if given:
                _update_given(*given, mean, cov, 0.1 if self.momentum is None else self.momentum)
            elif self.track_running_stats and not self._wants_batch():
                mode.update(self, stats_id, mean, cov)
                if mode.has_auxiliary_loss and torch.is_grad_enabled():
                    self._teach(stats_id, mean, cov)
        return y

    def _teach(self, stats_id: int | Tensor | None, mean: Tensor, cov: Tensor) -> None:
        """Leaves the auxiliary loss of this forward for `auxiliary_loss` to take."""

        def loss() -> Tensor:
            return self.auxiliary_weight * self.statistics_mode.auxiliary_loss(self, stats_id, mean, cov)

        self.pending_losses.add(loss, f"{type(self).__name__}({self.num_features}, stats={self.stats})", self.auxiliary_limit)

    def _affine(self, kernel: Kernel, x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        """By mean 0 and covariance I: only Gamma and beta act."""
        d, q, dtype = self.algebra.dim, self.num_numbers, sum_dtype(x.dtype)
        zero, one = torch.zeros(d * q, dtype=dtype, device=x.device), torch.eye(d, dtype=dtype, device=x.device)
        return kernel.normalize(x, zero, one.expand(q, d, d), gamma, beta, d=d, eps=0.0, whitening="naive")  # W = I exactly

    def _ranks(self) -> Group | None:
        """The ranks to synchronise with, where there are any but this one."""
        if not (self.sync and dist.is_available() and dist.is_initialized()):
            return None
        group = dist.group.WORLD if self.process_group is None else self.process_group
        return group if dist.get_world_size(group) > 1 else None

    def _wants_batch(self) -> bool:
        mode = self.statistics_mode
        return mode.evaluates_by_batch or (mode.uses_statistics and isinstance(self.row, str) and self.row == BATCH)

    def _by_sample(
        self,
        kernel: Kernel,
        x: Tensor,
        mean: Tensor,
        cov: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor:
        """Each sample by its own statistics [N, ...]."""
        if len(mean) != len(x):
            raise ValueError(f"stats_id must be one row or one for each of {len(x)} samples, got {len(mean)} rows")

        def normalize(x: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
            return kernel.normalize(x.unsqueeze(0), mean, cov, gamma, beta, **options).squeeze(0)

        y: Tensor = torch.func.vmap(normalize)(x, mean, cov)
        return y

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, algebra={self.algebra.name}, stats={self.stats}, whitening={self.whitening}, "
            f"affine={self.affine}, momentum={self.momentum}, eps={self.eps}, sync={self.sync}, backend={self.backend}, "
            f"num_stats={self.num_stats}"
        )


def _update_given(running_mean: Tensor, running_var: Tensor, mean: Tensor, cov: Tensor, momentum: float) -> None:
    """Moves a caller's plain buffers; what carries a gradient is never written to."""
    with torch.no_grad():
        for old, new in ((running_mean, mean), (running_var, cov)):
            if not learns(old):
                old.lerp_(new.reshape(old.shape).to(old.dtype), momentum)
