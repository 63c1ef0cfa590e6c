"""Layers for every algebra: products of numbers, and what sees a number as a whole.

Numbers are component-major real channels, so whatever works by component is torch's own: elementwise activations, average
pooling, `nn.Flatten`.
"""

from hnetcl.layers.activation import Cardioid, ModReLU, Tanh, ZReLU
from hnetcl.layers.base import BaseConv
from hnetcl.layers.conv import Conv1d, Conv2d, Conv3d, ConvNd
from hnetcl.layers.dropout import Dropout
from hnetcl.layers.embedding import ToNumbers, ToReal
from hnetcl.layers.init import initialize
from hnetcl.layers.linear import Linear
from hnetcl.layers.pooling import AdaptiveModulusMaxPool, ModulusMaxPool
from hnetcl.layers.transposed import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, ConvTransposeNd

__all__ = [
    "AdaptiveModulusMaxPool",
    "BaseConv",
    "Cardioid",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvNd",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "ConvTransposeNd",
    "Dropout",
    "Linear",
    "ModReLU",
    "ModulusMaxPool",
    "Tanh",
    "ToNumbers",
    "ToReal",
    "ZReLU",
    "initialize",
]
