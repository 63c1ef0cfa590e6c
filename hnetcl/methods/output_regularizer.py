"""The output regularizer: the hypernetwork is held to what it wrote for old tasks."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from hnetcl.choices import TARGET_DEVICES, TARGET_DTYPES, TARGETS
from hnetcl.errors import ArgumentError, one_of
from hnetcl.hnets import BaseHyperNetwork as HyperNetwork
from hnetcl.hnets import Record
from hnetcl.methods.base import Beside, Method, Rows
from hnetcl.methods.importance import Importance
from hnetcl.methods.lookahead import Lookahead, evaluate
from hnetcl.methods.targets import fetched, joined, kept, sent
from hnetcl.model import HyperModel
from hnetcl.tasks import Task


class OutputRegularizer(Method):
    r"""Adds, while task T is trained,

    .. math:: \frac{\beta}{T - 1} \sum_{t < T} c_t \sum_p F_{tp}
        \left( f(e_t, \theta + \Delta\theta) - f(e_t, \theta^*) \right)_p^2

    with theta* the hypernetwork before task T. Old embeddings stay trainable: they may follow theta, the targets do not move.
    All options can be combined.

    Args:
        beta: strength; 0 is fine-tuning a hypernetwork.
        sample: k, old tasks drawn at every step, each as likely as any other and none twice; their mean stands for that of all
            and is so on average (unbiased). Tasks come back only when fewer than k have not been drawn. None takes all.
        targets: "stored", f(e_t, theta*) is kept, in the form that compares fastest (see `HyperNetwork.record`); or "online",
            theta* is kept and f(e_t, theta*) written anew at every step, so that memory does not grow with the tasks.
        task_weights: c_t of the tasks, in their order; 1 for all where left out.
        lookahead: Delta theta is what the optimizer would change after the loss alone, embeddings included, and a constant
            for the gradient (see `Lookahead`). Otherwise it is 0.
        targets_dtype: of stored targets, which are rounded to it; compared in the hypernetwork's own. None is the latter.
        targets_device: "cpu", stored targets and F lie there and travel to the hypernetwork at every step; None, they lie
            where it is.
        tasks_at_once: most old tasks that are written in one forward. Where there are more, each forward's graph is dropped
            and computed again in backward: the same penalty and gradients, memory for so many tasks only, twice the forwards.
        importance: F. "none": 1. "fisher": the diagonal Fisher information of what was written for task t right after its
            training (see `fisher_information`), divided by its mean over p, so that beta keeps its meaning.
        fisher_samples: training images that it is estimated on, drawn once; all where a task has fewer.
        masks: [T, P], factors of F, such as `head_masks`; after the division.

    With F, numbers are compared one by one, which for many tasks takes longer than the form that compares fastest.

    Raises:
        ArgumentError: a number out of bounds, a name outside its set, or an option of stored targets where none are stored.

    Source: von Oswald et al. 2020 (arXiv:1906.00695), equation 2; F and masks as in their public code (hypnettorch,
    `calc_fix_target_reg`).
    """

    def __init__(
        self,
        beta: float,
        sample: int | None = None,
        targets: str = "stored",
        task_weights: Sequence[float] | None = None,
        lookahead: bool = False,
        targets_dtype: str | None = None,
        targets_device: str | None = None,
        tasks_at_once: int | None = None,
        importance: str = "none",
        fisher_samples: int = 1000,
        masks: Tensor | None = None,
    ) -> None:
        if not 0 <= beta < math.inf:
            raise ArgumentError("beta", beta, "must be finite and not negative")
        for name, count in (("sample", sample), ("tasks_at_once", tasks_at_once)):
            if count is not None and count < 1:
                raise ArgumentError(name, count, "must be at least 1")
        for name, choice, allowed in (
            ("targets", targets, TARGETS),
            ("targets_dtype", targets_dtype, (None, *TARGET_DTYPES)),
            ("targets_device", targets_device, (None, *TARGET_DEVICES)),
        ):
            if choice not in allowed:
                raise one_of(name, choice, allowed)
        for name, choice in (("targets_dtype", targets_dtype), ("targets_device", targets_device)):
            if choice is not None and targets == "online":
                raise ArgumentError(name, choice, "targets=online stores no targets; allowed: None")
        if task_weights is not None and not all(0 <= weight < math.inf for weight in task_weights):
            raise ArgumentError("task_weights", list(task_weights), "must be finite and not negative")
        self.beta, self.sample, self.targets, self.task_weights = beta, sample, targets, task_weights
        self.lookahead, self.tasks_at_once, self.targets_device = lookahead, tasks_at_once, targets_device
        self.targets_dtype: torch.dtype | None = getattr(torch, targets_dtype) if targets_dtype else None
        self.importance = Importance(importance, fisher_samples, masks)
        self.tasks: Tensor | None = None  # the old ones, on the targets' device; None where nothing is to be kept
        self.weights: Tensor | None = None
        self.record: Record | None = None
        self.factors: Record | None = None  # F
        self.snapshot: HyperNetwork | None = None
        self.ahead: Lookahead | None = None
        self.generator: torch.Generator | None = None
        self.order: Tensor | None = None  # of the old tasks, when some are drawn; from `place` on they are still to come
        self.place = 0
        self.distances: Rows = _distances
        self.weighted_distances: Rows = _weighted_distances

    @property
    def single_row(self) -> bool:
        return self.sample == 1

    def compile(self, compiler: Callable[[Rows], Rows]) -> None:
        self.distances, self.weighted_distances = compiler(_distances), compiler(_weighted_distances)

    def start_task(self, hnet: HyperNetwork, task: int, optimizer: Optimizer, generator: torch.Generator) -> None:
        self.tasks = self.weights = self.record = self.factors = self.snapshot = self.ahead = self.order = None
        if not task or not self.beta:
            return
        here = generator.device
        there = torch.device(self.targets_device or here)
        if there.type != here.type:  # what a step draws must be known where the targets lie
            seed = torch.randint(2**62, (), generator=generator, device=here)
            generator = torch.Generator(there).manual_seed(int(seed))
        self.generator = generator
        self.tasks = torch.arange(task, device=there)
        if self.task_weights is not None:
            if len(self.task_weights) < task:
                raise ArgumentError("task_weights", list(self.task_weights), f"there are {task} old tasks")
            self.weights = torch.tensor(self.task_weights[:task], device=here)
        factors = self.importance.of(task, hnet.num_generated, there)
        if factors is not None:
            self.factors = kept(Record([factors], []), here)
        if self.lookahead:
            self.ahead = Lookahead(optimizer)
        if self.targets == "online":
            self.snapshot = copy.deepcopy(hnet).requires_grad_(False)
        else:
            records = (
                self._written(hnet, tasks) for tasks in torch.arange(task, device=here).split(self.tasks_at_once or task)
            )
            self.record = kept(joined([record.to(there, self.targets_dtype) for record in records]), here)

    def batch_task(self, task: int, step: int) -> int:
        return task

    def beside(self, hnet: HyperNetwork) -> Beside | None:
        splits = self.tasks_at_once is not None and (self.sample is None or self.sample > self.tasks_at_once)
        if self.tasks is None or self.ahead is not None or splits:
            return None
        by_task, common = self._operands(hnet, self._drawn(self.tasks))
        write = _beside if self.factors is None else _weighted_beside
        return Beside(write, by_task, common, lambda far: self._total(far, by_task[0]))

    def penalty(self, hnet: HyperNetwork) -> Tensor | None:
        if self.tasks is None:
            return None
        values = None
        if self.ahead is not None:
            values = self.ahead.ahead({p: p.grad for p in hnet.parameters() if p.grad is not None})
        splits = self._drawn(self.tasks).split(self._at_once(len(self.tasks)))
        if len(splits) == 1:
            return self._far(hnet, values, splits[0])
        again = partial(checkpoint, self._far, hnet, values, use_reentrant=False, preserve_rng_state=False)
        return torch.stack([again(split) for split in splits]).sum()

    def end_task(self, model: HyperModel, task: int, data: Task, generator: torch.Generator) -> None:
        if self.beta:
            self.importance.learn(model, task, data, generator)

    def state(self) -> dict[str, Tensor]:
        return self.importance.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.importance.load_state(state)

    def _count(self, tasks: int) -> int:
        """Of so many old tasks, how many are compared at a step."""
        return min(self.sample or tasks, tasks)

    def _drawn(self, tasks: Tensor) -> Tensor:
        """The old tasks that a step compares."""
        count = self._count(len(tasks))
        if count == len(tasks):
            return tasks
        if self.order is None or self.place + count > len(tasks):
            self.order, self.place = torch.randperm(len(tasks), generator=self.generator, device=tasks.device), 0
        self.place += count
        return self.order[self.place - count : self.place]

    def _at_once(self, tasks: int) -> int:
        """Old tasks in one forward."""
        return min(self._count(tasks), self.tasks_at_once or tasks)

    def _written(self, hnet: HyperNetwork, tasks: Tensor) -> Record:
        """What is written for some tasks; in one form, that which is best for the last task, or steps would compile anew."""
        if self.factors is None:
            return hnet.record(tasks, self._at_once(max(1, hnet.num_tasks - 1)))
        with torch.no_grad():
            return Record([hnet.flat(tasks)], [])

    def _operands(self, hnet: HyperNetwork, places: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What is compared, for B tasks: their numbers [B] and tensors [B, ...]; tensors that are the same for all."""
        like = next(hnet.parameters())
        tasks = sent(places, like.device)
        if self.record is not None:
            before = fetched(self.record, places, like)
        else:
            assert self.snapshot is not None
            before = self._written(self.snapshot, tasks)
        factors = [] if self.factors is None else fetched(self.factors, places, like).by_task
        return [tasks, *before.by_task, *factors], before.common

    def _far(self, hnet: HyperNetwork, values: Mapping[nn.Parameter, Tensor] | None, places: Tensor) -> Tensor:
        """The part of some tasks in the penalty."""
        by_task, common = self._operands(hnet, places)
        distances = self.distances if self.factors is None else self.weighted_distances

        def distance(hnet: HyperNetwork) -> Tensor:
            return distances(hnet, by_task, common)

        return self._total(distance(hnet) if values is None else evaluate(hnet, values, distance), by_task[0])

    def _total(self, far: Tensor, tasks: Tensor) -> Tensor:
        """The penalty of squared distances [B]."""
        assert self.tasks is not None
        weighted = far if self.weights is None else far * self.weights.index_select(0, tasks)
        return self.beta / self._count(len(self.tasks)) * weighted.sum()


def _distances(hnet: HyperNetwork, by_task: list[Tensor], common: list[Tensor]) -> Tensor:
    tasks, *before = by_task
    return hnet.squared_distance(tasks, Record(before, common))


def _weighted_distances(hnet: HyperNetwork, by_task: list[Tensor], common: list[Tensor]) -> Tensor:
    tasks, before, factors = by_task
    return _weighted(hnet.flat(tasks), before, factors)


def _beside(hnet: HyperNetwork, task: Tensor, by_task: list[Tensor], common: list[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    tasks, *before = by_task
    return hnet.with_squared_distance(task, tasks, Record(before, common))


def _weighted_beside(
    hnet: HyperNetwork, task: Tensor, by_task: list[Tensor], common: list[Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    tasks, before, factors = by_task
    params, flat = hnet.with_flat(task, tasks)
    return params, _weighted(flat, before, factors)


def _weighted(flat: Tensor, before: Tensor, factors: Tensor) -> Tensor:
    return ((flat - before).square() * factors).sum(1)
