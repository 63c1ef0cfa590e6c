"""Initial weights for layers of any algebra, drawn once more."""

from typing import Literal, get_args

import torch
from torch import nn

from hnetcl.errors import ArgumentError, one_of
from hnetcl.layers.base import BaseConv
from hnetcl.layers.linear import Linear
from hnetcl.layers.transposed import ConvTransposeNd
from hnetcl.layers.weights import independent, polar, unitary

Criterion = Literal["he", "glorot"]
Fan = Literal["in", "out"]
Parts = Literal["independent", "polar", "unitary"]


@torch.no_grad()
def initialize(module: nn.Module, *, criterion: Criterion = "he", fan: Fan | None = None, parts: Parts = "independent") -> None:
    r"""Draws the weights of all linear layers and convolutions of this package in a module; their biases become zero.

    .. math:: \mathrm{Var}(w_a) = \frac{2}{fan} \;\text{(he)}, \qquad \frac{2}{fan_{in} + fan_{out}} \;\text{(glorot)}

    for each real component w_a, with fans of real channels. In numbers that is E |w|^2 = 2 / n for n = fan / d numbers: a real
    output sums d n products of components. At its defaults it draws what the layers draw when they are made.

    `parts` is how the components of a weight depend on each other:

    - "independent": Gaussian.
    - "polar": modulus and direction are drawn (Trabelsi et al. 2018, arXiv:1705.09792, section 3.6: Rayleigh modulus, uniform
      phase; Gaudet & Maida 2018, arXiv:1712.04604: chi modulus with 4 degrees of freedom). With a direction that is uniform on
      the sphere this is the law of "independent" once more. Public code differs from it: that of Trabelsi et al. has the scale
      1 / n in place of 1 / sqrt(n), a square root short; recipes for quaternions draw the imaginary axis from a cube, and the
      angle to it evenly, which gives real parts three times the variance of each imaginary part.
    - "unitary": a weight's matrix has orthogonal rows or columns, with the same variance (Trabelsi et al., section 3.6, for
      d = 2).

    Args:
        module: its layers whose weight is computed from other parameters (weight norm, pruning) are left as they are.
        criterion: He et al. 2015, equations 10 and 14; Glorot & Bengio 2010, equation 16.
        fan: of `he`: "in" (the default) keeps the scale of activations, "out" that of gradients.
        parts: see above.

    Raises:
        ArgumentError: an option is outside its set, or `fan` is given for glorot, which has both.
    """
    for name, value, choices in (("criterion", criterion, Criterion), ("parts", parts, Parts)):
        if value not in get_args(choices):
            raise one_of(name, value, get_args(choices))
    if fan not in (None, *get_args(Fan)):
        raise one_of("fan", fan, get_args(Fan))
    if fan and criterion == "glorot":
        raise ArgumentError("fan", fan, "is an option of criterion=he: glorot has both")
    for layer in module.modules():
        if not isinstance(layer, Linear | BaseConv) or "weight" not in layer._parameters:
            continue
        fan_in, fan_out = layer.fans()
        variance = 2 / (fan_in + fan_out if criterion == "glorot" else fan_out if fan == "out" else fan_in)
        shape = layer.weight.shape
        if parts == "unitary":
            drawn = unitary(shape, variance, layer.algebra, layer.groups if isinstance(layer, BaseConv) else 1)
            if isinstance(layer, ConvTransposeNd):  # multiplies by the matrix of its weight's conjugates
                drawn = layer.algebra.conjugate(drawn)
        else:
            drawn = (polar if parts == "polar" else independent)(shape, variance)
        layer.weight.copy_(drawn)
        if layer.bias is not None:
            layer.bias.zero_()
