"""Norm layers for inference, with nothing left to choose: their tensors, and what is computed with them."""

import torch
from torch import Tensor, nn

from hnetcl.bn.virtual import mixed
from hnetcl.kernels import whitening
from hnetcl.kernels.layout import complex_to_real, real_to_complex, sum_dtype
from hnetcl.kernels.reference import regularize


class FixedNorm(nn.Module):
    r"""What a batch-norm layer computes in evaluation, once its row is chosen: an affine map of every number.

    .. math:: y = A (x - \mu) + \beta, \qquad A = \Gamma f(V)

    Args:
        matrix: A [Q, d, d].
        mean: mu [C].
        bias: beta [C], or None for zero.

    x is [N, C, *S], component-major; for d = 2 also complex [N, Q, *S].
    """

    weight: Tensor
    mean: Tensor
    bias: Tensor | None

    def __init__(self, matrix: Tensor, mean: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.dim = matrix.shape[-1]
        self.register_buffer("weight", matrix if self.dim > 1 else matrix.flatten())
        self.register_buffer("mean", mean)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_complex():
            return real_to_complex(self(complex_to_real(x)))
        dtype, shape = sum_dtype(x.dtype), (-1, *[1] * (x.ndim - 2))
        weight, mean = self.weight.to(dtype), self.mean.to(dtype)
        y = x.to(dtype) - mean.reshape(shape)
        if self.dim == 1:
            y = y * weight.reshape(shape)
        else:
            numbers = y.reshape(x.shape[0], self.dim, weight.shape[0], -1)  # `len` would fix the batch size in a graph
            y = torch.einsum("qab,nbqs->naqs", weight, numbers).reshape(x.shape)
        return (y if self.bias is None else y + self.bias.to(dtype).reshape(shape)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.mean)}, numbers of {self.dim} components"


class FixedVirtualNorm(nn.Module):
    """What a `VirtualBatchNormLayer` computes by the reference batch of one row, in operations that every exporter knows.

    Args:
        reference: mean [C], variance [C] or covariance [Q, d, d], and number of samples [] of the reference batch.
        gamma: Gamma [Q, d, d], or None for the identity.
        bias: beta [C], or None for zero.
        dim: d.
        eps, kind: `eps` and `whitening` of the layer.
    """

    mean: Tensor
    var: Tensor
    count: Tensor
    gamma: Tensor | None
    bias: Tensor | None

    def __init__(
        self, reference: list[Tensor], gamma: Tensor | None, bias: Tensor | None, *, dim: int, eps: float, kind: str
    ) -> None:
        super().__init__()
        self.dim, self.eps, self.kind = dim, eps, kind if dim > 1 else "cholesky"
        for name, value in zip(("mean", "var", "count", "gamma", "bias"), (*reference, gamma, bias), strict=True):
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_complex():
            return real_to_complex(self(complex_to_real(x)))
        numbers = x.reshape(x.shape[0], self.dim, x.shape[1] // self.dim, x.shape[2:].numel()).to(sum_dtype(x.dtype))
        mean, cov = mixed(numbers, self.mean, self.var, self.count)
        matrix = _whiten(regularize(cov, self.eps, self.kind, x.dtype), self.kind)
        matrix = (matrix if self.gamma is None else self.gamma.double() @ matrix).to(numbers.dtype)
        y = torch.einsum("nqab,nbqs->naqs", matrix, numbers - mean.unsqueeze(-1))
        if self.bias is not None:
            y = y + self.bias.reshape(self.dim, -1, 1)
        return y.reshape(x.shape).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.mean)}, numbers of {self.dim} components, whitening={self.kind}, eps={self.eps}"


def _whiten(cov: Tensor, kind: str) -> Tensor:
    r"""W [..., d, d] of V, which has its eps already.

    For d = 2 without eigenvectors, whose angles ONNX has no operation for:

    .. math:: V^{-1/2} = (\operatorname{adj} V + s I) / (s t), \qquad s^2 = \det V, \quad t^2 = \operatorname{tr} V + 2 s
    """
    if kind != "zca" or cov.shape[-1] != 2:
        return whitening.whiten(cov, kind).w
    a, b, c = cov[..., 0, 0], cov[..., 0, 1], cov[..., 1, 1]
    s = (a * c - b * b).clamp_min(whitening.TINY).sqrt()
    scale = 1 / (s * (a + c + 2 * s).sqrt())
    rows = torch.stack([(c + s) * scale, -b * scale], -1), torch.stack([-b * scale, (a + s) * scale], -1)
    return torch.stack(rows, -2)
