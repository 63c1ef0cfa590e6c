"""A main network and the hypernetwork that writes it, as one module."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import index
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from hnetcl.bn import norm_layers, reference_pass, using_task, writable_parameters
from hnetcl.errors import ArgumentError
from hnetcl.hnets import BaseHyperNetwork
from hnetcl.hnets.base import replace_parameter
from hnetcl.modes import evaluation_mode
from hnetcl.modules import (
    Caches,
    TaskBuffers,
    as_arguments,
    copied,
    device_of,
    fill,
    main_logits,
    parameter_places,
    placed,
    recomputed_within,
    require_known,
    require_writable,
    to_float,
)
from hnetcl.numbers import as_parameter, real_view
from hnetcl.registry import checking

Shared = Literal["trained", "trained_once", "fixed"]
Precision = Literal["float32", "bfloat16"]


@checking
class HyperModel(nn.Module):
    """logits = model(x, task=2): the hypernetwork writes the parameters of task 2, its norm layers use row 2.

    The parameters that the hypernetwork writes are switched off in the network itself; what it does not write is shared by all
    tasks. Norm layers that keep rows get one for every task, and so does every other buffer that training changes, of whatever
    layer (see `TaskBuffers`).

        logits = model((image, text), task=2)          # a tuple: several inputs; a dict is one
        all_logits = model.eval().all_tasks(x)         # [T, N, K]
        net = model.plain(2)                           # a task's network as a module of its own

    Modules that compute again in backward what they drop (`torch.utils.checkpoint`) do so with what was written. What an
    evaluation leaves in a module's attributes, as caches, is put back before the next (see `Caches`).

    Args:
        net: maps x to logits; or to several outputs, which are returned as they are.
        hnet: writes some or all of `writable_parameters(net)`.
        shared: what becomes of the others: "trained" with every task, "trained_once" (with task 0 only), or "fixed".
        precision: "float32"; or "bfloat16": the network runs under autocast, and only it. Parameters, logits and all that the
            hypernetwork writes stay float32, for a regularizer looks at changes smaller than bfloat16's steps, 1 in 256.
        rows: of batch-norm statistics: "task", one for each task; "shared", one that all tasks update, as ordinary batch norm.

    Raises:
        ArgumentError: an option is none of these, or the network keeps state that is no tensor (`get_extra_state`).
        ValueError: the hypernetwork writes a parameter that the network has not, or of another shape.
    """

    def __init__(
        self,
        net: nn.Module,
        hnet: BaseHyperNetwork,
        *,
        shared: Shared = "trained",
        precision: Precision = "float32",
        rows: Literal["task", "shared"] = "task",
    ) -> None:
        super().__init__()
        parameters = writable_parameters(net)
        shapes = {name: real_view(parameter).shape for name, parameter in parameters.items()}
        differing = sorted(set(hnet.shapes.items()) - set(shapes.items()))
        if differing:
            raise ValueError(f"the hypernetwork must write parameters of the network; it has none of these: {differing}")
        require_writable(net, [parameter for name, parameter in parameters.items() if name in hnet.shapes])
        self.net, self.hnet, self.shared, self.precision, self.rows = net, hnet, shared, precision, rows
        self.buffers_by_task = TaskBuffers(hnet.num_tasks)
        self.places = parameter_places(net)
        self.caches = Caches()
        self.recognizer: Any = None  # an `inference.Recognizer`, where tasks are told apart by more than logits
        self.classifier: Any = None  # an `inference.Classifier`, where more than logits says which class a sample is
        for name, parameter in parameters.items():
            parameter.requires_grad_(parameter.requires_grad and name not in hnet.shapes and shared != "fixed")
        for layer in norm_layers(net).values():
            while 0 < layer.num_stats < self.num_rows:
                layer.checkpoint_stats()

    @property
    def num_rows(self) -> int:
        """Rows of statistics in every batch-norm layer that keeps some."""
        return self.hnet.num_tasks if self.rows == "task" else 1

    @property
    def is_conditioned(self) -> bool:
        """Whether the network is another one for another task: its parameters, its rows of statistics or its other buffers."""
        by_rows = self.rows == "task" and any(layer.num_stats for layer in norm_layers(self.net).values())
        return by_rows or any(p.numel() for p in self.hnet.task_parameters()) or bool(self.buffers_by_task.rows)

    def row_of(self, task: int | Tensor) -> int | Tensor:
        """The row of statistics that a task uses."""
        return task if self.rows == "task" else 0

    def add_task(self, optimizer: Optimizer | None = None) -> None:
        """Opens one more task, with a row of its own in every norm layer that keeps rows; what was learned stays.

        Args:
            optimizer: of this model, if there is one already: it goes on with the grown parameters, its state kept.
        """
        self.hnet.add_task(optimizer)
        self.buffers_by_task.add_task(self.net)
        if self.recognizer is not None:
            self.recognizer.add_task()
        for layer in norm_layers(self.net).values():
            before = layer.rows
            if 0 < layer.num_stats < self.num_rows:
                layer.checkpoint_stats()
            for name, old in before.items():
                new = layer.rows[name]
                if optimizer is not None and isinstance(old, nn.Parameter) and isinstance(new, nn.Parameter) and new is not old:
                    replace_parameter(optimizer, old, new)

    def start_task(self, task: int) -> None:
        """Called before a task is trained: from task 1 on, parameters that are trained once are fixed."""
        if task and self.shared == "trained_once":
            for parameter in writable_parameters(self.net).values():
                parameter.requires_grad_(False)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Those of the network that learn and that all tasks share."""
        return [parameter for parameter in writable_parameters(self.net).values() if parameter.requires_grad]

    def common_parameters(self) -> dict[str, nn.Parameter]:
        """All that learns and that the tasks have in common, by name; rows of statistics are not among them."""
        own = self.hnet.task_parameters()
        found = {f"hnet.{name}": p for name, p in self.hnet.named_parameters() if not any(p is q for q in own)}
        net = {f"net.{name}": p for name, p in writable_parameters(self.net).items()}
        return {name: p for name, p in (found | net).items() if p.requires_grad and p.numel()}

    def forward(self, x: Any, task: int | Tensor, stats: int | Tensor | str | None = None) -> Any:
        """Logits [N, K] of a task: what the network returns.

        Args:
            x: what the network takes: a tensor, a dict or list as one input, or a tuple of several inputs.
            task: whose parameters and buffers, an int or a 0-dim tensor.
            stats: whose row of statistics, or `bn.BATCH`; the task's own where left out.

        Raises:
            ValueError: there is no such task.
            ArgumentError: training makes a buffer, or changes the shape of one, so that tasks can't have their own.
        """
        return self.run(self.hnet(task), x, task, stats)

    def scores(self, x: Any, task: int) -> Tensor:
        """Scores of classes [N, K], of which evaluation takes the largest: those of `classifier`; without one, the logits."""
        if self.classifier is None:
            return main_logits(self(x, task))
        found: Tensor = self.classifier(self, self.hnet(task), x, task)
        return found

    def all_tasks(self, x: Any) -> Any:
        """Logits [T, N, K] of all tasks in one pass, in evaluation: each task's parameters with its own statistics.

        Raises:
            ValueError: the model is in training mode, where a pass would update all rows at once.
        """
        tasks = torch.arange(self.hnet.num_tasks, device=device_of(x))
        return self.some_tasks(x, tasks, self.hnet(tasks))

    def some_tasks(self, x: Any, tasks: Tensor, params: dict[str, Tensor]) -> Any:
        """The same [B, N, K] for a vector of B tasks, with parameters [B, ...] that were written before.

        Networks that `torch.func.vmap` can't take in one pass, such as recurrent ones, run task after task.

        Raises:
            ValueError: the model is in training mode.
        """
        if self.training:
            raise ValueError("the logits of several tasks are for evaluation: call model.eval() before")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "There is a performance drop")  # vmap would loop over single operations
                return torch.func.vmap(lambda own, task: self.run(own, x, task))(params, tasks)
        except (NotImplementedError, RuntimeError, UserWarning, ValueError):  # as vmap refuses; all else fails below, too
            each = [{name: value[i] for name, value in params.items()} for i in range(len(tasks))]
            outputs = [self.run(own, x, task) for own, task in zip(each, tasks, strict=True)]
            return tree_map(lambda *leaves: torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *outputs)
        finally:
            self.caches.reset()  # what vmap has left in them lives no longer

    def run(self, params: dict[str, Tensor], x: Any, task: int | Tensor, stats: int | Tensor | str | None = None) -> Any:
        """The network's outputs with these parameters, a task's buffers, and the task's row of statistics or another."""
        net, buffers, task = self.net, self.buffers_by_task, task if isinstance(task, Tensor) else index(task)
        eager, low = not torch.compiler.is_compiling(), self.precision == "bfloat16"
        if eager:
            self.caches.reset()
            buffers.look(net, task if net.training else None)
        elif net.training and not buffers.looked and buffers.shared(net):
            raise ValueError(
                "which buffers training changes is not known yet: run the model once in training before it is compiled"
            )
        before = [] if net.training or not eager else self.caches.look(net)
        tensors, row = params | buffers.of(task), self.row_of(task) if stats is None else stats
        places = self.places | buffers.places

        def capture() -> Callable[[], AbstractContextManager[None]]:
            kept = params | {name: net.get_buffer(name).clone() for name in buffers.rows}
            return lambda: self._again(kept, places, row)

        autocast = torch.autocast(device_of(x).type, torch.bfloat16) if low else nullcontext()
        with recomputed_within(capture), using_task(net, row), autocast, placed(net, tensors, places) as left:
            outputs = net(*as_arguments(x))
        if net.training:
            buffers.store(task, left)
        if eager:
            if net.training and not buffers.looked:
                require_known(net, self.places)
            buffers.settle(net, task if net.training else None)
            self.caches.settle(before)
        return to_float(outputs) if low else outputs

    @torch.no_grad()
    def find_buffers(self, x: Any, task: int | Tensor) -> None:
        """Finds the buffers that training changes, by a forward in training mode that leaves no other trace.

        A compiled step can't find them itself. Where the network has no buffers but batch norm's, nothing is run.
        """
        if not self.buffers_by_task.shared(self.net):
            self.buffers_by_task.looked = True
        if self.buffers_by_task.looked:
            return
        live, known = self._norm_rows(), self.buffers_by_task.rows
        before = [value.clone() for value in live], {name: value.clone() for name, value in known.items()}
        device = device_of(x)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self(x, task)
        for value, old in zip(live, before[0], strict=True):
            value.copy_(old)
        for name, value in self.buffers_by_task.rows.items():
            value.copy_(before[1].get(name, self.net.get_buffer(name)))

    @torch.no_grad()
    def take_reference(self, x: Any, task: int) -> None:
        """Makes x the reference batch of a task's row in every `VirtualBatchNormLayer`, with the weights as they are now.

        Raises:
            ValueError: there is no such task, or x has one value per channel.
        """
        with evaluation_mode(self), reference_pass(self.net):
            self(x, task)

    @torch.no_grad()
    def plain(self, task: int) -> nn.Module:
        """A task's network as a module of its own, which knows of no other task: its parameters, its buffers, its row of
        statistics as the only one. A copy; it computes in the parameters' own precision, whatever `precision` is.

        Raises:
            ValueError: there is no such task.
            ArgumentError: the model has a classifier, which a module of its own would be without.
        """
        task = index(task)
        if self.classifier is not None:
            rule = f"would classify by its logits, not by {type(self.classifier).__name__}; allowed: model.scores(x, task)"
            raise ArgumentError("plain", task, rule)
        params = self.hnet(task)
        self.caches.reset()
        net = copied(self.net)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name in params or parameter.requires_grad)
        for name, written in params.items():
            parameter = net.get_parameter(name)
            parameter.copy_(as_parameter(written, parameter))
        for name, row in self.buffers_by_task.of(task).items():
            net.get_buffer(name).copy_(row)
        for layer in norm_layers(net).values():
            if layer.num_stats:
                layer.keep_only(int(self.row_of(task)))
        return net

    def _norm_rows(self) -> list[Tensor]:
        """All rows of statistics."""
        return [value for layer in norm_layers(self.net).values() for value in layer.rows.values()]

    @contextmanager
    def _again(self, tensors: dict[str, Tensor], places: dict[str, list[str]], row: int | Tensor | str) -> Iterator[None]:
        """Within, the network computes again what it has dropped, with the tensors and the row of that time.

        No statistics and no buffers move, for they have moved then.
        """
        self.buffers_by_task.look(self.net)
        rows = [(value, value.detach().clone()) for value in self._norm_rows()]
        opened = {name: self.net.get_buffer(name).clone() for name in self.buffers_by_task.rows if name not in tensors}
        places = places | self.buffers_by_task.places
        with using_task(self.net, row), placed(self.net, opened | tensors, places):
            try:
                yield
            finally:
                with torch.no_grad():
                    for value, before in rows:
                        value.copy_(before)
                self.buffers_by_task.settle(self.net, None)

    def saved_tensors(self) -> dict[str, Tensor]:
        """All that a reload needs: the hypernetwork; of the network what it does not write, statistics rows included, each
        tensor once; the rows of other buffers, of the recognizer and of the classifier.
        """
        tensors = {f"hnet.{name}": value for name, value in self.hnet.state_dict().items()}
        own: dict[str, Tensor] = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        state = self.net.state_dict()
        unwritten = {name: value for name, value in own.items() if name in state and name not in self.hnet.shapes}
        tensors |= {f"net.{name}": value.detach() for name, value in unwritten.items()}
        for kind, part in (("recognizer", self.recognizer), ("classifier", self.classifier)):
            tensors |= {} if part is None else {f"{kind}.{name}": value for name, value in part.named_buffers()}
        return tensors | {f"buffers.{name}": value for name, value in self.buffers_by_task.rows.items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `saved_tensors`.

        Raises:
            ValueError: a tensor is missing, unknown, or of the wrong shape or dtype; a batch-norm layer has not a row for each
                task.
        """
        for name in tensors:
            kind, _, buffer = name.partition(".")
            if kind == "buffers" and buffer in self.buffers_by_task.shared(self.net):
                self.buffers_by_task.open(self.net, buffer, self.net.get_buffer(buffer))
        own = self.saved_tensors()
        if own.keys() != tensors.keys():
            raise ValueError(f"tensors missing or unknown: {', '.join(sorted(own.keys() ^ tensors.keys()))}")
        for name, layer in norm_layers(self.net).items():
            for key in (f"net.{name}.{row_name}" for row_name in layer.rows):
                if tensors[key].ndim and len(tensors[key]) != self.num_rows:
                    raise ValueError(f"{key} has {len(tensors[key])} rows of statistics, but there are {self.num_rows} tasks")
        fill(own, tensors)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Opens rows for the buffers that had them where the state was saved."""
        for name in self.buffers_by_task.shared(self.net):
            rows = state_dict.get(f"{prefix}buffers_by_task.{name.replace('.', '/')}")
            if rows is not None:
                self.buffers_by_task.open(self.net, name, rows[0])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
