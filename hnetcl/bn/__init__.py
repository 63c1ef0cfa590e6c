"""Batch norm with one row of running statistics per task."""

from hnetcl.bn.auxiliary import auxiliary_loss
from hnetcl.bn.bake import bake, layers_by_batch
from hnetcl.bn.base import BATCH, NormLayer
from hnetcl.bn.conv_bn import ConvBatchNorm, FusedBatchNormLayer
from hnetcl.bn.convert import convert_batchnorm
from hnetcl.bn.fold import fold_batchnorm
from hnetcl.bn.layer import BatchNormLayer
from hnetcl.bn.measure import recalibrate
from hnetcl.bn.rows import batchnorm_layers, learned_values, norm_layers, row_parameters, using_task, writable_parameters
from hnetcl.bn.virtual import VirtualBatchNormLayer, reference_pass

__all__ = [
    "BATCH",
    "BatchNormLayer",
    "ConvBatchNorm",
    "FusedBatchNormLayer",
    "NormLayer",
    "VirtualBatchNormLayer",
    "auxiliary_loss",
    "bake",
    "batchnorm_layers",
    "convert_batchnorm",
    "fold_batchnorm",
    "layers_by_batch",
    "learned_values",
    "norm_layers",
    "recalibrate",
    "reference_pass",
    "row_parameters",
    "using_task",
    "writable_parameters",
]
