"""Linear and convolution layers for every algebra; activations and pooling work per component, so torch's own serve."""

from hnetcl.layers.conv import Conv2d
from hnetcl.layers.conv_bn import ConvBatchNorm
from hnetcl.layers.linear import Linear

__all__ = ["Conv2d", "ConvBatchNorm", "Linear"]
