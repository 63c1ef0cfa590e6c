"""Hypernetworks: task -> the main network's parameters, by name."""

from hnetcl.hnets.base import HyperNetwork, Record
from hnetcl.hnets.chunked import ChunkedHyperNetwork
from hnetcl.hnets.direct import DirectHyperNetwork
from hnetcl.hnets.full import FullHyperNetwork

__all__ = ["ChunkedHyperNetwork", "DirectHyperNetwork", "FullHyperNetwork", "HyperNetwork", "Record"]
