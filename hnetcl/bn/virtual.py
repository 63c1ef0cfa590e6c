"""Virtual batch norm: each sample is normalized together with a fixed reference batch, not with its own batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn

from hnetcl.algebra import Algebra
from hnetcl.bn.base import BATCH, NormLayer
from hnetcl.kernels.backends import select
from hnetcl.kernels.layout import complex_to_real, real_to_complex, sum_dtype
from hnetcl.registry import register


@register("bn", "virtual")
class VirtualBatchNormLayer(NormLayer):
    r"""Batch norm of each sample by the statistics of a reference batch into which the sample is mixed.

    .. math:: \mu = a \mu_r + b \mu_s, \qquad V = a V_r + b V_s + a b (\mu_r - \mu_s)(\mu_r - \mu_s)^T

    with a = n / (n + 1) and b = 1 / (n + 1) for a reference of n samples. These are the mixed moments a E_r + b E_s of x and
    x x^T, centred: E[x x^T] - mu mu^T would cancel in float32. A sample's own moments are over its positions, so V_s = 0
    where it has one. The output for a sample does not depend on the others, and is the same in training and evaluation.

        layer = VirtualBatchNormLayer(64, algebra="quaternion")
        with reference_pass(layer):
            layer(x_ref)                     # again whenever the layers before have learned
        y = layer(x)                         # x [N, 64, *S]

    Each task has a reference of its own: rows are opened, chosen, saved and loaded as in `BatchNormLayer`.

    Args:
        num_features, algebra, whitening, affine, eps, backend: as in `BatchNormLayer`.

    Attributes:
        reference_mean: [rows, C].
        reference_var: the biased variance [rows, C] (d = 1) or covariance [rows, Q, d, d].
        reference_count: n [rows]; 0 where there is no reference yet.

    Raises:
        ArgumentError: C is not a positive multiple of d, or an argument is outside its set.

    Source: Salimans et al. 2016, Improved Techniques for Training GANs, section 3.5, with the sample's weight of their code.
    """

    reference_count: Tensor
    reference_var: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        algebra: Literal["real", "complex", "quaternion"] | Algebra = "real",
        whitening: Literal["zca", "cholesky", "naive"] | None = None,
        affine: bool = True,
        eps: Annotated[float, Gt(0)] = 1e-5,
        backend: Literal["auto", "reference", "closed_form", "compiled"] = "auto",
    ) -> None:
        super().__init__(num_features, algebra, whitening, affine, eps, backend)
        self.collecting = False  # set by `reference_pass`
        self._collected: set[int] = set()  # rows known to have a reference, so that a GPU is asked once
        self._open_first_row()

    def fresh_row(self) -> dict[str, Tensor]:
        """No reference yet."""
        return dict(zip(("reference_mean", "reference_var", "reference_count"), self._standard_row(), strict=True))

    def forward(
        self, x: Tensor, *, stats_id: int | Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Normalizes x; within `reference_pass` by its own statistics, which become the row's reference.

        Args:
            x: [N, C, *S] with up to three axes in S; for d = 2 also complex [N, Q, *S], as is then what is returned.
            stats_id: the row, an int or a 0-dim tensor; left out where there is one row or `using_task` chose one.
            weight, bias: used in place of the layer's own.

        Raises:
            ValueError: the shape of x, a reference of one value per channel, several rows and none chosen, an unknown row,
                or one without a reference (where a tensor chose the row, the output is nan).
        """
        if self._is_complex(x):
            return real_to_complex(self(complex_to_real(x), stats_id=stats_id, weight=weight, bias=bias))
        self._check(x, x.shape, weight=weight, bias=bias)
        gamma, beta = self.gamma(weight), self.bias if bias is None else bias
        if self.collecting or (stats_id is None and isinstance(self.row, str) and self.row == BATCH):
            return self._by_own_statistics(x, stats_id, gamma, beta)

        n, d, q, space = x.shape[0], self.algebra.dim, self.num_numbers, x.shape[2:].numel()
        numbers = x.reshape(n, d, q, space)
        mean, cov = mixed(numbers, *self.reference(stats_id))
        y = select(self.backend, x, d).normalize(  # a batch of n samples with statistics each is one sample of n q numbers
            numbers.transpose(0, 1).reshape(1, d * n * q, space),
            mean.transpose(0, 1).reshape(-1),
            cov.flatten(0, 1),
            None if gamma is None else gamma.repeat(n, 1, 1),
            None if beta is None else beta.reshape(d, 1, q).expand(d, n, q).reshape(-1),
            d=d,
            eps=self.eps,
            whitening="cholesky" if d == 1 else self.whitening,  # the same for d = 1, and without eigenvectors
        )
        return y.reshape(d, n, q, space).transpose(0, 1).reshape(x.shape)

    def _by_own_statistics(self, x: Tensor, stats_id: int | Tensor | None, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        if x.numel() // self.num_features < 2:
            raise ValueError(f"batch statistics need more than one value per channel, got x of shape {tuple(x.shape)}")
        kernel = select(self.backend, x, self.algebra.dim)
        y, mean, cov, _ = kernel.batch_norm(x, gamma, beta, d=self.algebra.dim, eps=self.eps, whitening=self.whitening)
        if self.collecting:
            var = cov.reshape(self.reference_var.shape[1:])
            self.write(stats_id, mean, var, self.reference_count.new_full((), len(x)))
        return y

    def reference(self, stats_id: int | Tensor | None = None) -> list[Tensor]:
        """Mean, covariance and number of samples of a row's reference batch.

        Raises:
            ValueError: several rows and none chosen, no such row, or it has no reference batch.
        """
        row = self._row(stats_id)
        if isinstance(row, int) and row not in self._collected:
            if not self.reference_count[row]:
                raise ValueError(
                    f"row {row} has no reference batch: call `with reference_pass(module): module(x_ref)` before module(x)"
                )
            self._collected.add(row)
        return self.read(row)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._collected.clear()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, algebra={self.algebra.name}, whitening={self.whitening}, affine={self.affine}, "
            f"eps={self.eps}, num_stats={self.num_stats}"
        )


def mixed(x: Tensor, mean: Tensor, var: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [N, d, Q] and covariance [N, Q, d, d] of every sample of numbers x [N, d, Q, S], mixed into a reference's row."""
    dtype, d = sum_dtype(x.dtype), x.shape[1]
    x = x.to(dtype)
    own = x.mean(-1)
    centred = x - own.unsqueeze(-1)
    # not a matrix product, which autocast would take in half precision
    cov = torch.stack([(centred * centred[:, b : b + 1]).mean(-1) for b in range(d)], -1)  # [N, d, Q, d]
    b = torch.where(count > 0, 1 / (count.to(dtype) + 1), torch.nan)
    mean = mean.to(dtype).reshape(d, -1)
    shift = own - mean
    spread = shift.unsqueeze(-1) * shift.transpose(1, 2).unsqueeze(1)  # [N, d, Q, d]
    reference = var.to(dtype).reshape(-1, d, d)
    return mean + b * shift, (1 - b) * reference + (b * (cov + (1 - b) * spread)).transpose(1, 2)


@contextmanager
def reference_pass(module: nn.Module) -> Iterator[None]:
    """Within, a call of `module` makes its input the reference batch of every `VirtualBatchNormLayer` inside.

    The layers normalize that batch by its own statistics, and keep them in the row that is chosen then:

        with using_task(net, 2), torch.no_grad(), reference_pass(net):
            net(x_ref)
    """
    layers = [layer for layer in module.modules() if isinstance(layer, VirtualBatchNormLayer)]
    before = [layer.collecting for layer in layers]
    for layer in layers:
        layer.collecting = True
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.collecting = old
