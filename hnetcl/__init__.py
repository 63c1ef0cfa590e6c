"""hnetcl: continual learning with hypernetworks, and batch norm for real, complex and quaternion numbers.

Public names are loaded when they are first used, so that the command line answers without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hnetcl.algebra import COMPLEX, QUATERNION, REAL
    from hnetcl.bn import (
        BatchNormLayer,
        ConvBatchNorm,
        VirtualBatchNormLayer,
        auxiliary_loss,
        convert_batchnorm,
        fold_batchnorm,
        recalibrate,
        reference_pass,
        using_task,
    )
    from hnetcl.cli.reload import load
    from hnetcl.errors import ArgumentError, DivergedError
    from hnetcl.exporting import export
    from hnetcl.hnets import DirectHyperNetwork, Generator, HyperNetwork, initial_parameters
    from hnetcl.model import HyperModel
    from hnetcl.registry import register
    from hnetcl.wrapping import wrap

__version__ = "0.1.0"

_ROOMS = {
    "ArgumentError": "errors",
    "BatchNormLayer": "bn",
    "COMPLEX": "algebra",
    "ConvBatchNorm": "bn",
    "DirectHyperNetwork": "hnets",
    "DivergedError": "errors",
    "Generator": "hnets",
    "HyperModel": "model",
    "HyperNetwork": "hnets",
    "QUATERNION": "algebra",
    "REAL": "algebra",
    "VirtualBatchNormLayer": "bn",
    "auxiliary_loss": "bn",
    "convert_batchnorm": "bn",
    "export": "exporting",
    "fold_batchnorm": "bn",
    "initial_parameters": "hnets",
    "load": "cli.reload",
    "recalibrate": "bn",
    "reference_pass": "bn",
    "register": "registry",
    "using_task": "bn",
    "wrap": "wrapping",
}

__all__ = [
    "COMPLEX",
    "QUATERNION",
    "REAL",
    "ArgumentError",
    "BatchNormLayer",
    "ConvBatchNorm",
    "DirectHyperNetwork",
    "DivergedError",
    "Generator",
    "HyperModel",
    "HyperNetwork",
    "VirtualBatchNormLayer",
    "auxiliary_loss",
    "convert_batchnorm",
    "export",
    "fold_batchnorm",
    "initial_parameters",
    "load",
    "recalibrate",
    "reference_pass",
    "register",
    "using_task",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'hnetcl' has no attribute {name!r}")
    return getattr(import_module(f"hnetcl.{_ROOMS[name]}"), name)
