"""The output regularizer: the hypernetwork is held to what it wrote for old tasks."""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from hnetcl.errors import ArgumentError
from hnetcl.hnets import BaseHyperNetwork, Record
from hnetcl.importance import Importance, require_samples
from hnetcl.lookahead import Lookahead, evaluate
from hnetcl.methods.base import Draw, Inputs, Losses, Method, Run
from hnetcl.methods.targets import fetched, joined, moved, prefetchable
from hnetcl.model import HyperModel
from hnetcl.registry import register
from hnetcl.tasks import TaskSequence


@register("method", "output_regularizer")
class OutputRegularizer(Method):
    r"""Adds, while task T is trained,

    .. math:: \frac{\beta}{T - 1} \sum_{t < T} c_t \sum_p F_{tp}
        \left( f(e_t, \theta + \Delta\theta) - f(e_t, \theta^*) \right)_p^2

    with theta* the hypernetwork before task T. Old embeddings stay trainable: they may follow theta, the targets do not move.
    All options can be combined.

    Args:
        masks: [T, P], factors of F, such as `head_masks`; after F is divided by its mean. None for none.
        beta: strength; 0 is fine-tuning a hypernetwork.
        sample: k, old tasks drawn at every step, each as likely as any other and none twice; their mean stands for that of all
            and is so on average (unbiased). Tasks come back only when fewer than k have not been drawn. None takes all.
        targets: "stored", f(e_t, theta*) is kept, in the form that compares fastest (see its `record`); or "online",
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

    With F, numbers are compared one by one, which for many tasks takes longer than the form that compares fastest.

    Raises:
        ArgumentError: a number out of bounds, a name outside its set, or an option of stored targets where none are stored.

    Source: von Oswald et al. 2020 (arXiv:1906.00695), equation 2; F and masks as in their public code (hypnettorch,
    `calc_fix_target_reg`).
    """

    def __init__(
        self,
        masks: Tensor | None = None,
        *,
        beta: Annotated[float, Ge(0)] = 0.01,
        sample: Annotated[int, Ge(1)] | None = None,
        targets: Literal["stored", "online"] = "stored",
        task_weights: Sequence[Annotated[float, Ge(0)]] | None = None,
        lookahead: bool = False,
        targets_dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = None,
        targets_device: Literal["cpu"] | None = None,
        tasks_at_once: Annotated[int, Ge(1)] | None = None,
        importance: Literal["none", "fisher"] = "none",
        fisher_samples: Annotated[int, Ge(1)] = 1000,
    ) -> None:
        for name, choice in (("targets_dtype", targets_dtype), ("targets_device", targets_device)):
            if choice is not None and targets == "online":
                raise ArgumentError(name, choice, "targets=online stores no targets; allowed: None")
        self.beta, self.sample, self.targets, self.task_weights = beta, sample, targets, task_weights
        self.lookahead, self.tasks_at_once, self.targets_device = lookahead, tasks_at_once, targets_device
        self.targets_dtype: torch.dtype | None = getattr(torch, targets_dtype) if targets_dtype else None
        self.importance = Importance(importance, fisher_samples, masks)
        self.tasks: Tensor | None = None  # the old ones, on the targets' device; None where nothing is to be kept
        self.weights: Tensor | None = None
        self.scale: Tensor | None = None  # beta over the old tasks that a step compares, 0-dim
        self.record: Record | None = None
        self.factors: Record | None = None  # F
        self.snapshot: BaseHyperNetwork | None = None
        self.ahead: Lookahead | None = None
        self.generator: torch.Generator | None = None
        self.order: Tensor | None = None  # of the old tasks, when some are drawn; from `place` on they are still to come
        self.place = 0

    def check(self, model: HyperModel, sequence: TaskSequence) -> None:
        weights, tasks = self.task_weights, len(sequence)
        if weights is not None and len(weights) not in (tasks - 1, tasks):
            rule = f"must be {tasks} weights, one for each task (task.num_tasks={tasks}); the last may be left out"
            raise ArgumentError("task_weights", list(weights), rule)
        if self.importance.kind == "fisher":
            require_samples(model, "importance", self.importance.kind)

    def start_task(self, run: Run) -> None:
        self.hold(run.model.hnet, run.task, run.optimizer, run.generator)

    def hold(self, hnet: BaseHyperNetwork, task: int, optimizer: Optimizer, generator: torch.Generator) -> None:
        """Keeps what the hypernetwork generates for the tasks before this one; the rest as in `Run`."""
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
        self.scale = torch.full((), self.beta / self._count(task), dtype=next(hnet.parameters()).dtype, device=here)
        if self.task_weights is not None:
            if len(self.task_weights) < task:
                raise ArgumentError("task_weights", list(self.task_weights), f"there are {task} old tasks")
            self.weights = torch.tensor(self.task_weights[:task], device=here)
        factors = self.importance.of(task, hnet.num_generated, there)
        if factors is not None:
            self.factors = prefetchable(Record([factors], []), here)
        if self.lookahead:
            self.ahead = Lookahead(optimizer)
        if self.targets == "online":
            self.snapshot = copy.deepcopy(hnet).requires_grad_(False)
        else:
            records = (
                self._written(hnet, tasks) for tasks in torch.arange(task, device=here).split(self.tasks_at_once or task)
            )
            self.record = prefetchable(joined([record.to(there, self.targets_dtype) for record in records]), here)

    def inputs(self, run: Run, draw: Draw) -> Inputs:
        inputs = super().inputs(run, draw)
        if self.tasks is not None and not self._comes_second():
            self._add(inputs, run.model.hnet, self._drawn(self.tasks))
        return inputs

    def micro_batches(self, inputs: Inputs, parts: int) -> list[Inputs]:
        return inputs.split(parts)

    def loss(self, model: HyperModel, inputs: Inputs) -> Losses:
        if not inputs.old:
            return super().loss(model, inputs)
        own = inputs.task
        assert isinstance(own, Tensor)
        tasks, before = inputs.old["tasks"], Record(inputs.old["before"], inputs.tensors["common"])
        if "factors" in inputs.old:
            params, flat = model.hnet.with_flat(own, tasks)
            distances = _weighted(flat, before.by_task[0], inputs.old["factors"])
        else:
            params, distances = model.hnet.with_squared_distance(own, tasks, before)
        task = self.task_loss(model.run(params, inputs.x, own), inputs)
        penalty = inputs.tensors["scale"] * inputs.weighted(distances).sum()
        return Losses(task.total + penalty, {**task.parts, "penalty": penalty}, task.logits)

    def after_backward(self, run: Run, inputs: Inputs) -> dict[str, Tensor]:
        if self.tasks is None or not self._comes_second():
            return {}
        penalty = self.penalty(run.model.hnet)
        assert penalty is not None
        penalty.backward()
        return {"penalty": penalty.detach()}

    def penalty(self, hnet: BaseHyperNetwork) -> Tensor | None:
        """The penalty by itself, 0-dim; None where there are no old tasks. The loss's gradients are in place."""
        if self.tasks is None:
            return None
        values = None
        if self.ahead is not None:
            values = self.ahead.ahead({p: p.grad for p in hnet.parameters() if p.grad is not None})
        splits = self._drawn(self.tasks).split(self._at_once(len(self.tasks)))
        if len(splits) == 1:
            return self._share(hnet, values, splits[0])
        computed_twice = partial(checkpoint, self._share, hnet, values, use_reentrant=False, preserve_rng_state=False)
        return torch.stack([computed_twice(split) for split in splits]).sum()

    def end_task(self, run: Run) -> None:
        if self.beta:
            own = run.sequence.own_outputs(torch.full((), run.task, device=run.generator.device))
            self.importance.learn(run.model, run.task, run.data, run.generator, own, run.sequence.loss)

    def task_state(self) -> dict[str, Tensor]:
        if self.order is None or self.generator is None:
            return {}
        return {"order": self.order, "place": torch.tensor(self.place), "generator": self.generator.get_state()}

    def load_task_state(self, run: Run, state: Mapping[str, Tensor]) -> None:
        if state and self.tasks is not None and self.generator is not None:
            self.order, self.place = state["order"].to(self.tasks.device), int(state["place"])
            self.generator.set_state(state["generator"].cpu())

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.importance.state())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.importance.load_state(state)

    def _comes_second(self) -> bool:
        """Whether the penalty is computed after the loss's gradients: it needs them, or is taken in several forwards."""
        splits = self.tasks_at_once is not None and (self.sample is None or self.sample > self.tasks_at_once)
        return self.ahead is not None or splits

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

    def _written(self, hnet: BaseHyperNetwork, tasks: Tensor) -> Record:
        """What is written for some tasks; in one form, that which is best for the last task, or steps would compile anew."""
        if self.factors is None:
            return hnet.record(tasks, self._at_once(max(1, hnet.num_tasks - 1)))
        with torch.no_grad():
            return Record([hnet.flat(tasks)], [])

    def _add(self, inputs: Inputs, hnet: BaseHyperNetwork, places: Tensor) -> None:
        """Adds what is compared, for the old tasks at these places."""
        like = next(hnet.parameters())
        tasks = moved(places, like.device)
        if self.record is not None:
            before = fetched(self.record, places, like)
        else:
            assert self.snapshot is not None
            before = self._written(self.snapshot, tasks)
        inputs.old = {"tasks": tasks, "before": before.by_task}
        if self.factors is not None:
            inputs.old["factors"] = fetched(self.factors, places, like).by_task[0]
        inputs.tensors = {"scale": self.scale, "common": before.common}
        inputs.weights = None if self.weights is None else self.weights.index_select(0, tasks)
        inputs.grows = self.sample != 1

    def _share(self, hnet: BaseHyperNetwork, values: Mapping[nn.Parameter, Tensor] | None, places: Tensor) -> Tensor:
        """The share of some old tasks in the penalty."""
        inputs = Inputs(places, places, 0)
        self._add(inputs, hnet, places)

        def distance(hnet: BaseHyperNetwork) -> Tensor:
            tasks, before = inputs.old["tasks"], Record(inputs.old["before"], inputs.tensors["common"])
            if "factors" in inputs.old:
                return _weighted(hnet.flat(tasks), before.by_task[0], inputs.old["factors"])
            return hnet.squared_distance(tasks, before)

        distances = distance(hnet) if values is None else evaluate(hnet, values, distance)
        assert self.scale is not None
        return self.scale * inputs.weighted(distances).sum()


def _weighted(flat: Tensor, before: Tensor, factors: Tensor) -> Tensor:
    return ((flat - before).square() * factors).sum(1)
