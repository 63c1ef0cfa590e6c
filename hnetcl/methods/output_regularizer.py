"""The output regularizer: the hypernetwork is held to what it wrote for old tasks."""

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from hnetcl.choices import TARGETS
from hnetcl.errors import ArgumentError, one_of
from hnetcl.hnets import HyperNetwork, Record
from hnetcl.methods.base import Method, Rows


class OutputRegularizer(Method):
    r"""Adds, while task T is trained,

    .. math:: \frac{\beta}{T - 1} \sum_{t < T} c_t \lVert f(e_t, \theta) - f(e_t, \theta^*) \rVert^2

    with theta* the hypernetwork before task T. Old embeddings stay trainable: they may follow theta, the targets do not move.

    Args:
        beta: strength; 0 is fine-tuning a hypernetwork.
        sample: k, old tasks drawn at every step, each as likely as any other and none twice; their mean stands for that of all
            and is so on average (unbiased). None takes all.
        targets: "stored", f(e_t, theta*) is kept, in the form that compares fastest (see `HyperNetwork.record`); or "online",
            theta* is kept and f(e_t, theta*) written anew at every step, so that memory does not grow with the tasks.
        task_weights: c_t of the tasks, in their order; 1 for all where left out.

    Raises:
        ArgumentError: beta or a weight is negative or not finite, k below 1, or no such kind of targets.

    Source: von Oswald et al. 2020 (arXiv:1906.00695), equation 2, with their lookahead step left out (Delta theta = 0).
    """

    def __init__(
        self,
        beta: float,
        sample: int | None = None,
        targets: str = "stored",
        task_weights: Sequence[float] | None = None,
    ) -> None:
        if not 0 <= beta < math.inf:
            raise ArgumentError("beta", beta, "must be finite and not negative")
        if sample is not None and sample < 1:
            raise ArgumentError("sample", sample, "must be at least 1")
        if targets not in TARGETS:
            raise one_of("targets", targets, TARGETS)
        if task_weights is not None and not all(0 <= weight < math.inf for weight in task_weights):
            raise ArgumentError("task_weights", list(task_weights), "must be finite and not negative")
        self.beta, self.sample, self.targets, self.task_weights = beta, sample, targets, task_weights
        self.tasks: Tensor | None = None  # the old ones; None where nothing is to be kept
        self.weights: Tensor | None = None
        self.record: Record | None = None
        self.snapshot: HyperNetwork | None = None
        self.generator: torch.Generator | None = None
        self.distances: Rows = _distances

    def compile(self, compiler: Callable[[Rows], Rows]) -> None:
        self.distances = compiler(_distances)

    def start_task(self, hnet: HyperNetwork, task: int, optimizer: Optimizer, generator: torch.Generator) -> None:
        self.tasks = self.weights = self.record = self.snapshot = None
        self.generator = generator
        if not task or not self.beta:
            return
        self.tasks = torch.arange(task, device=generator.device)
        if self.task_weights is not None:
            if len(self.task_weights) < task:
                raise ArgumentError("task_weights", list(self.task_weights), f"there are {task} old tasks")
            self.weights = torch.tensor(self.task_weights[:task], device=generator.device)
        if self.targets == "online":
            self.snapshot = copy.deepcopy(hnet).requires_grad_(False)
        else:
            self.record = hnet.record(self.tasks, self._at_once(self.tasks))

    def batch_task(self, task: int, step: int) -> int:
        return task

    def penalty(self, hnet: HyperNetwork) -> Tensor | None:
        if self.tasks is None:
            return None
        count = self._at_once(self.tasks)
        tasks, before = self.tasks, self.record
        if count < len(tasks):
            tasks = torch.rand(len(tasks), generator=self.generator, device=tasks.device).topk(count).indices
            before = before and before.of(tasks)
        if before is None:
            assert self.snapshot is not None
            before = self.snapshot.record(tasks, count)
        far = self.distances(hnet, [tasks, *before.by_task], before.common)
        if self.weights is not None:
            far = far * self.weights.index_select(0, tasks)
        return self.beta / count * far.sum()

    def _at_once(self, tasks: Tensor) -> int:
        return len(tasks) if self.sample is None else min(self.sample, len(tasks))


def _distances(hnet: HyperNetwork, by_task: list[Tensor], common: list[Tensor]) -> Tensor:
    tasks, *before = by_task
    return hnet.squared_distance(tasks, Record(before, common))
