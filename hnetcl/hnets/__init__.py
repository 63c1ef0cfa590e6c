"""Hypernetworks: task -> the main network's parameters, by name."""

from hnetcl.hnets.base import BaseHyperNetwork, Record
from hnetcl.hnets.direct import DirectHyperNetwork
from hnetcl.hnets.generators.generator import Generator
from hnetcl.hnets.hypernetwork import HyperNetwork, make_hypernetwork
from hnetcl.hnets.initial import initial_parameters

__all__ = [
    "BaseHyperNetwork",
    "DirectHyperNetwork",
    "Generator",
    "HyperNetwork",
    "Record",
    "initial_parameters",
    "make_hypernetwork",
]
