"""The output regularizer: the hypernetwork is held to what it wrote for old tasks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.hnets import HyperNetwork
from hnetcl.methods.base import Method


class OutputRegularizer(Method):
    r"""Adds, while task T is trained,

    .. math:: \frac{\beta}{T - 1} \sum_{t < T} \lVert f(e_t, \theta) - f(e_t, \theta^*) \rVert^2

    with theta* the hypernetwork before task T. Old embeddings stay trainable: they may follow theta, the targets do not move.

    Args:
        beta: strength; 0 is fine-tuning a hypernetwork.

    Raises:
        ArgumentError: beta is negative or not finite.

    Source: von Oswald et al. 2020 (arXiv:1906.00695), equation 2, with their lookahead step left out (Delta theta = 0).
    """

    def __init__(self, beta: float) -> None:
        if not 0 <= beta < math.inf:
            raise ArgumentError("beta", beta, "must be finite and not negative")
        self.beta = beta
        self.tasks: Tensor | None = None
        self.targets: Tensor | None = None

    def start_task(self, hnet: HyperNetwork, task: int) -> None:
        self.tasks = self.targets = None
        if task and self.beta:
            self.tasks = torch.arange(task, device=next(hnet.parameters()).device)
            with torch.no_grad():
                self.targets = hnet.flat(self.tasks)

    def batch_task(self, task: int, step: int) -> int:
        return task

    def penalty(self, hnet: HyperNetwork) -> Tensor | None:
        if self.tasks is None or self.targets is None:
            return None
        return self.beta / len(self.tasks) * F.mse_loss(hnet.flat(self.tasks), self.targets, reduction="sum")
