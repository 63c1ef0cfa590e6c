"""Hypernetworks: task -> the main network's parameters, by name."""

from hnetcl.hnets.base import HyperNetwork, Record
from hnetcl.hnets.chunked import ChunkedHyperNetwork
from hnetcl.hnets.direct import DirectHyperNetwork
from hnetcl.hnets.full import FullHyperNetwork
from hnetcl.hnets.initial import initial_parameters
from hnetcl.hnets.low_rank import LowRankHyperNetwork
from hnetcl.hnets.structured import StructuredHyperNetwork

__all__ = [
    "ChunkedHyperNetwork",
    "DirectHyperNetwork",
    "FullHyperNetwork",
    "HyperNetwork",
    "LowRankHyperNetwork",
    "Record",
    "StructuredHyperNetwork",
    "initial_parameters",
]
