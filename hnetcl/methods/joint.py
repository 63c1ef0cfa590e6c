"""Joint training: all data seen so far stays at hand. The upper baseline."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from hnetcl.hnets import BaseHyperNetwork as HyperNetwork
from hnetcl.methods.base import Method


class Joint(Method):
    """While task t is current, the steps' batches come from tasks 0, 1, ..., t, 0, 1, ... in turn."""

    def start_task(self, hnet: HyperNetwork, task: int, optimizer: Optimizer, generator: torch.Generator) -> None:
        pass

    def batch_task(self, task: int, step: int) -> int:
        return step % (task + 1)

    def penalty(self, hnet: HyperNetwork) -> Tensor | None:
        return None
