"""Main networks: plain modules that map images to logits, written once for all algebras.

A network takes `in_shape` (C, H, W), `num_outputs`, `norm`, which makes the batch-norm layer of a width, and as
configuration its widths and an `algebra`. Its last layer is called `head` and is real: a logit is a real number.

The first layer is real, too: a real input lifted to numbers (x, 0, ..., 0) meets only the first block column of the product's
matrix, which stacks the weight's d components and so is a plain real weight. An input whose channels are numbers already, such
as Fourier transforms, is told by `in_algebra`; the first layer is then of the algebra, too.

`modules` brings in networks that know none of this: torchvision's and users' own.
"""

from hnetcl.nets.lenet import LeNet
from hnetcl.nets.mlp import MLP
from hnetcl.nets.modules import require_logits, torchvision_net
from hnetcl.nets.resnet import ResNet
from hnetcl.nets.resnet18 import ResNet18
from hnetcl.nets.wide_resnet import WideResNet
from hnetcl.nets.zenke import Zenke

__all__ = ["MLP", "LeNet", "ResNet", "ResNet18", "WideResNet", "Zenke", "require_logits", "torchvision_net"]
