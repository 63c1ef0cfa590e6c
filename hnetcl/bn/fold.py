"""Folding batch norm into the layer before it, for inference."""

from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn

from hnetcl.algebra import Algebra
from hnetcl.bn.base import NormLayer
from hnetcl.bn.conv_bn import ConvBatchNorm, FusedBatchNormLayer
from hnetcl.bn.layer import BatchNormLayer
from hnetcl.bn.rows import norm_layers
from hnetcl.errors import one_line
from hnetcl.kernels import reference
from hnetcl.layers import BaseConv, Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, Linear
from hnetcl.numbers import as_parameter, real_view

Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
OURS = (Linear, Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)
Real = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | Transposed


def fold_batchnorm(
    module: nn.Module, stats_id: int | Tensor | str | None = None, params: Mapping[str, Tensor] | None = None
) -> nn.Module:
    r"""A copy of `module`, in evaluation mode, whose batch-norm layers have become part of the layers before them.

    .. math:: A (W x + b - \mu) + \beta = (A W) x + (A (b - \mu) + \beta), \qquad A = \Gamma f(V)

    A mixes the components of a number, so a `Linear` or `Conv2d` of any algebra becomes an ordinary real `nn.Linear` or
    `nn.Conv2d`, with its options. The batch-norm layer becomes `nn.Identity`. Computed in float64.

        fast = fold_batchnorm(net, stats_id=2)
        fast = fold_batchnorm(model.net, 2, model.hnet(2))       # the net of task 2 of a `HyperModel`

    A `ConvBatchNorm` inside becomes the two layers that it is made of, and these are folded.

    What can't be folded exactly stays as it is, so that the output is the same in any case: layers that use the batch's own
    statistics, and virtual ones; those whose input is not the output of one linear or convolution layer, of the same width,
    used once and without hooks or parametrizations; those after a convolution with groups of numbers; and, for d > 1, those
    after one with groups of real channels, which A would mix.
    torch.fx knows no shapes: a linear layer before a batch norm is taken to see [N, in].

    Args:
        module: any module that torch.fx can trace; it is left as it is.
        stats_id: the row to fold, which layers that stay use, too; left out where there is one row or `using_task` chose one.
        params: tensors by name in place of the module's own parameters, as a hypernetwork writes them.

    Raises:
        ValueError: torch.fx can't trace the module, several rows and none chosen, an unknown row, or a tensor in `params`
            that fits no parameter.
    """
    folded = _copy(module).eval()
    _write(folded, params or {})
    if stats_id is not None:
        for layer in norm_layers(folded).values():
            layer.row = layer.choose(stats_id)
    for name, pair in list(folded.named_modules()):
        if name and type(pair) is ConvBatchNorm and not is_hooked(pair):
            folded.set_submodule(name, nn.Sequential(pair.conv, pair.norm))
    for before, after in _neighbours(folded):
        real, norm = as_real(folded.get_submodule(before)), folded.get_submodule(after)
        if real is not None and isinstance(norm, BatchNormLayer) and _foldable(real, norm):
            _fold(real, norm)
            folded.set_submodule(before, real)
            folded.set_submodule(after, nn.Identity())
    return folded.eval()


def _copy(module: nn.Module) -> nn.Module:
    """A deep copy, also where hooks have left a tensor with a graph in a module, as `torch.nn.utils.weight_norm` does."""
    held = (value for each in module.modules() for value in vars(each).values() if isinstance(value, Tensor))
    return deepcopy(module, {id(value): value.detach().clone() for value in held if not value.is_leaf})


@torch.no_grad()
def _write(module: nn.Module, params: Mapping[str, Tensor]) -> None:
    own = dict(module.named_parameters(remove_duplicate=False))
    for name, value in params.items():
        if name not in own:
            raise ValueError(f"params has {name!r}, but {type(module).__name__} has no such parameter")
        if value.shape not in (own[name].shape, real_view(own[name]).shape):
            raise ValueError(f"params[{name!r}] must have shape {tuple(own[name].shape)}, got {tuple(value.shape)}")
        own[name].copy_(value if value.shape == own[name].shape else as_parameter(value, own[name]))


class _Tracer(fx.Tracer):
    """Records calls of torch's layers and of ours, not what happens inside them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, NormLayer) or (isinstance(getattr(m, "algebra", None), Algebra) and not m._modules)
        return ours or super().is_leaf_module(m, module_qualified_name)


def _neighbours(module: nn.Module) -> list[tuple[str, str]]:
    """The names of two modules that are called once, the second with the output of the first, which nothing else uses."""
    try:
        with torch.enable_grad():  # without, modules may ask what only a tensor can answer, to be faster
            nodes = list(_Tracer().trace(module).nodes)
    except Exception as error:  # whatever the module's code raises where it expects a tensor
        raise ValueError(f"torch.fx can't trace {type(module).__name__}, so it can't be folded: {one_line(error)}") from error
    uses = Counter(str(node.target) for node in nodes if node.op == "call_module")
    uses.update(str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr")
    pairs = []
    for node in nodes:
        before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if isinstance(before, fx.Node) and node.op == before.op == "call_module" and len(before.users) == 1:
            names = str(before.target), str(node.target)
            if uses[names[0]] == uses[names[1]] == 1:
                pairs.append(names)
    return pairs


def as_real(layer: Any) -> Real | None:
    """The layer, or the real one that does the same; None where it does anything else, as subclasses and hooks may."""
    real: Real
    if is_hooked(layer):
        return None
    if type(layer) in get_args(Real):
        real = layer
        return real
    if type(layer) not in OURS or (isinstance(layer, BaseConv) and layer.reorders):  # a real layer for these is mostly zeros
        return None
    real = layer.as_real()
    return real


def _foldable(layer: Real, norm: BatchNormLayer) -> bool:
    if type(norm) not in (BatchNormLayer, FusedBatchNormLayer) or is_hooked(norm):
        return False
    if norm.statistics_mode.uses_statistics and norm.evaluation_statistics() is None:
        return False
    if isinstance(layer, nn.Linear):
        return layer.out_features == norm.num_features
    return layer.out_channels == norm.num_features and (norm.algebra.dim == 1 or layer.groups == 1)


def is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


@torch.no_grad()
def _fold(layer: Real, norm: BatchNormLayer) -> None:
    """Gives the layer the weight A W and the bias A (b - mu) + beta."""
    dtype, learns = layer.weight.dtype, layer.weight.requires_grad
    matrix, mean = evaluation_map(norm, layer.weight)
    bias = _mix(matrix, -mean if layer.bias is None else layer.bias.double() - mean)
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = layer.weight.double()
    if isinstance(layer, Transposed):
        weight = _swap(_mix(matrix, _swap(weight, layer.groups)), layer.groups)
    else:
        weight = _mix(matrix, weight)
    layer.weight, layer.bias = (nn.Parameter(value.to(dtype), learns) for value in (weight, bias))


def evaluation_map(norm: BatchNormLayer, like: Tensor) -> tuple[Tensor, Tensor]:
    """A [Q, d, d] and mu [C] in float64, as the layer uses them in evaluation for input like that."""
    d, q = norm.algebra.dim, norm.num_numbers
    gamma, statistics = norm.gamma(), norm.evaluation_statistics()
    if statistics is None:
        mean, whitener = like.new_zeros(d * q), torch.eye(d, dtype=torch.float64, device=like.device).expand(q, d, d)
    else:
        mean, cov = statistics
        whitener = reference.whiten(reference.regularize(cov, norm.eps, norm.whitening, like.dtype), norm.whitening)
    return (whitener if gamma is None else gamma.double() @ whitener), mean.double()


def _mix(matrix: Tensor, value: Tensor) -> Tensor:
    """A times the numbers that lie along the first axis: [Q, d, d], [C, *R] -> [C, *R]."""
    q, d, _ = matrix.shape
    mixed: Tensor = torch.einsum("qab,bqm->aqm", matrix, value.reshape(d, q, -1))
    return mixed.reshape(value.shape)


def _swap(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight [in, out / groups, *K] with its outputs first, [out, in / groups, *K], or back."""
    swapped: Tensor = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return swapped
