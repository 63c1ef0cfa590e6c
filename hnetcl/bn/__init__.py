"""Batch norm with one row of running statistics per task."""

from hnetcl.bn.convert import convert_batchnorm
from hnetcl.bn.fold import fold_batchnorm
from hnetcl.bn.layer import BATCH, BatchNormLayer
from hnetcl.bn.rows import batchnorm_layers, using_task
from hnetcl.bn.virtual import VirtualBatchNormLayer, reference_pass

__all__ = [
    "BATCH",
    "BatchNormLayer",
    "VirtualBatchNormLayer",
    "batchnorm_layers",
    "convert_batchnorm",
    "fold_batchnorm",
    "reference_pass",
    "using_task",
]
