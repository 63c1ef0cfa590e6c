"""A network for inference, of torch's layers: nothing is left that knows of algebras or of rows of statistics."""

import torch
from torch import Tensor, nn

from hnetcl.bn.conv_bn import ConvBatchNorm, FusedBatchNormLayer
from hnetcl.bn.fold import evaluation_map, fold_batchnorm, is_hooked
from hnetcl.bn.layer import BatchNormLayer
from hnetcl.bn.rows import batchnorm_layers
from hnetcl.kernels.layout import complex_to_real, real_to_complex, sum_dtype
from hnetcl.layers import Conv2d, Linear
from hnetcl.modules import copied

HALF = (torch.bfloat16, torch.float16)


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
        shape = (-1, *[1] * (x.ndim - 2))
        y = x.to(sum_dtype(x.dtype)) - self.mean.reshape(shape)
        if self.dim == 1:
            y = y * self.weight.reshape(shape)
        else:
            numbers = y.reshape(x.shape[0], self.dim, self.weight.shape[0], -1)  # `len` would fix the batch size in a graph
            y = torch.einsum("qab,nbqs->naqs", self.weight, numbers).reshape(x.shape)
        return (y if self.bias is None else y + self.bias.reshape(shape)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.mean)}, numbers of {self.dim} components"


def bake(module: nn.Module) -> nn.Module:
    """A copy of a network, in evaluation mode, that computes the same with torch's layers wherever it can.

    Batch norm is folded into the layer before it (`fold_batchnorm`) where that is exact, and is a `FixedNorm` elsewhere;
    weights of every algebra become real matrices. Layers with hooks, subclasses, and virtual batch norm stay as they are; in
    half precision nothing is folded, for the product would be rounded once more.

        net = bake(model.plain(2))

    Args:
        module: whose norm layers have one row of statistics, or where `using_task` chose one. Left as it is.

    Raises:
        ValueError: several rows and none chosen; or a layer normalizes by the batch's own statistics, so that what comes out for
            a sample depends on the others.
    """
    for name, norm in batchnorm_layers(module).items():
        if norm.statistics_mode.uses_statistics and norm.evaluation_statistics() is None:
            raise ValueError(f"{name} normalizes by the batch's own statistics: what it gives for a sample depends on the others")
    baked = _folded(module)
    made: dict[int, nn.Module] = {}
    for name, layer in list(baked.named_modules(remove_duplicate=False)):
        fixed = made[id(layer)] if id(layer) in made else _fixed(layer)
        if fixed is not None and name:
            made[id(layer)] = fixed
            baked.set_submodule(name, fixed)
    return baked.eval()


def _folded(module: nn.Module) -> nn.Module:
    """The copy, with batch norm folded where that is exact."""
    tensors = [*module.parameters(), *module.buffers()]
    if not any(value.dtype in HALF for value in tensors):
        try:
            return fold_batchnorm(module)
        except ValueError:  # torch.fx can't trace it
            pass
    copy = copied(module).eval()
    for name, pair in list(copy.named_modules()):
        if name and type(pair) is ConvBatchNorm and not is_hooked(pair):
            copy.set_submodule(name, nn.Sequential(pair.conv, pair.norm))
    return copy


@torch.no_grad()
def _fixed(layer: nn.Module) -> nn.Module | None:
    """The layer of torch's, or the `FixedNorm`, that computes the same; None where the layer stays."""
    if is_hooked(layer):
        return None
    if type(layer) in (Linear, Conv2d):
        real: nn.Module = layer.as_real()  # type: ignore[operator]  # which both have
        return real
    if not isinstance(layer, BatchNormLayer) or type(layer) not in (BatchNormLayer, FusedBatchNormLayer):
        return None
    tensors = [*layer.parameters(), *layer.statistics_tensors().values()]
    like = next((value for value in tensors if value.is_floating_point()), torch.zeros(()))
    matrix, mean = evaluation_map(layer, like)
    dtype = sum_dtype(like.dtype)
    bias = None if layer.bias is None else layer.bias.detach().to(dtype, copy=True)
    return FixedNorm(matrix.to(dtype, copy=True), mean.to(dtype, copy=True), bias)
