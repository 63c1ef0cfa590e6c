"""Batch norm with one row of running statistics per task."""

from hnetcl.bn.convert import convert_batchnorm
from hnetcl.bn.layer import BATCH, BatchNormLayer
from hnetcl.bn.rows import batchnorm_layers, using_task

__all__ = ["BATCH", "BatchNormLayer", "batchnorm_layers", "convert_batchnorm", "using_task"]
