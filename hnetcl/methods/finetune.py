"""Fine-tuning: nothing is done about forgetting. The lower baseline."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from hnetcl.hnets import BaseHyperNetwork as HyperNetwork
from hnetcl.methods.base import Method


class Finetune(Method):
    """Trains on the current task alone."""

    def start_task(self, hnet: HyperNetwork, task: int, optimizer: Optimizer, generator: torch.Generator) -> None:
        pass

    def batch_task(self, task: int, step: int) -> int:
        return task

    def penalty(self, hnet: HyperNetwork) -> Tensor | None:
        return None
