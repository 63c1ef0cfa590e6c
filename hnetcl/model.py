"""A main network and the hypernetwork that writes it, as one module."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from hnetcl.bn import norm_layers, using_task, writable_parameters
from hnetcl.choices import PRECISIONS, SHARED
from hnetcl.errors import one_of
from hnetcl.hnets import HyperNetwork
from hnetcl.hnets.growth import replace_parameter
from hnetcl.numbers import as_parameter, real_view


class HyperModel(nn.Module):
    """logits = model(x, task=2): the hypernetwork writes the parameters of task 2, its norm layers use row 2.

    The parameters that the hypernetwork writes are switched off in the network itself; what it does not write is shared by all
    tasks. Norm layers that keep rows get one for every task.

    Args:
        net: maps x to logits.
        hnet: writes some or all of `writable_parameters(net)`.
        shared: what becomes of the others: "trained" with every task, "trained_once" (with task 0 only), or "fixed".
        precision: "float32"; or "bfloat16": the network runs under autocast, and only it. Parameters, logits and all that the
            hypernetwork writes stay float32, for a regularizer looks at changes smaller than bfloat16's steps, 1 in 256.

    Raises:
        ArgumentError: `shared` or `precision` is none of these.
        ValueError: the hypernetwork writes a parameter that the network has not, or of another shape.
    """

    def __init__(self, net: nn.Module, hnet: HyperNetwork, shared: str = "trained", precision: str = "float32") -> None:
        super().__init__()
        if shared not in SHARED:
            raise one_of("shared", shared, SHARED)
        if precision not in PRECISIONS:
            raise one_of("precision", precision, PRECISIONS)
        parameters = writable_parameters(net)
        shapes = {name: real_view(parameter).shape for name, parameter in parameters.items()}
        differing = sorted(set(hnet.shapes.items()) - set(shapes.items()))
        if differing:
            raise ValueError(f"the hypernetwork must write parameters of the network; it has none of these: {differing}")
        self.net, self.hnet, self.shared, self.precision = net, hnet, shared, precision
        for name, parameter in parameters.items():
            parameter.requires_grad_(parameter.requires_grad and name not in hnet.shapes and shared != "fixed")
        for layer in norm_layers(net).values():
            while 0 < layer.num_stats < hnet.num_tasks:
                layer.checkpoint_stats()

    def add_task(self, optimizer: Optimizer | None = None) -> None:
        """Opens one more task, with a row of its own in every norm layer that keeps rows; what was learned stays.

        Args:
            optimizer: of this model, if there is one already: it goes on with the grown parameters, its state kept.
        """
        self.hnet.add_task(optimizer)
        for layer in norm_layers(self.net).values():
            before = layer.rows
            if 0 < layer.num_stats < self.hnet.num_tasks:
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

    def forward(self, x: Tensor, task: int | Tensor, stats: int | Tensor | str | None = None) -> Tensor:
        """Logits [N, K] of a task.

        Args:
            x: a batch for the network.
            task: whose parameters, an int or a 0-dim tensor.
            stats: whose row of statistics, or `bn.BATCH`; the task's own where left out.
        """
        return self.run(self.hnet(task), x, task if stats is None else stats)

    def all_tasks(self, x: Tensor) -> Tensor:
        """Logits [T, N, K] of all tasks in one pass, in evaluation: each task's parameters with its own statistics.

        Raises:
            ValueError: the model is in training mode, where a pass would update all rows at once.
        """
        tasks = torch.arange(self.hnet.num_tasks, device=x.device)
        return self.some_tasks(x, tasks, self.hnet(tasks))

    def some_tasks(self, x: Tensor, tasks: Tensor, params: dict[str, Tensor]) -> Tensor:
        """The same [B, N, K] for a vector of B tasks, with parameters [B, ...] that were written before.

        Raises:
            ValueError: the model is in training mode.
        """
        if self.training:
            raise ValueError("the logits of several tasks are for evaluation: call model.eval() before")
        logits: Tensor = torch.func.vmap(lambda own, task: self.run(own, x, task))(params, tasks)
        return logits

    def run(self, params: dict[str, Tensor], x: Tensor, stats: int | Tensor | str) -> Tensor:
        """Logits [N, K] of the network with these parameters and that row of statistics."""
        low = self.precision == "bfloat16"
        with using_task(self.net, stats), torch.autocast(x.device.type, torch.bfloat16) if low else nullcontext():
            logits: Tensor = functional_call(self.net, self.in_own_dtypes(params), (x,))
        return logits.float() if low else logits

    def in_own_dtypes(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """What was written, real numbers, in the dtypes of the parameters that it stands for, complex ones too."""
        return {name: as_parameter(value, self.net.get_parameter(name)) for name, value in params.items()}

    def saved_tensors(self) -> dict[str, Tensor]:
        """All that a reload needs: the hypernetwork, and of the network what it does not write, statistics rows included."""
        tensors = {f"hnet.{name}": value for name, value in self.hnet.state_dict().items()}
        own = dict(self.net.named_parameters())
        written = {id(own[name]) for name in self.hnet.shapes}
        tied = {name for name, value in self.net.named_parameters(remove_duplicate=False) if id(value) in written}
        return tensors | {f"net.{n}": v for n, v in self.net.state_dict().items() if n not in tied}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `saved_tensors`.

        Raises:
            ValueError: a tensor is missing, unknown or of the wrong shape; a batch-norm layer has not one row for each task.
        """
        own = self.saved_tensors()
        if own.keys() != tensors.keys():
            raise ValueError(f"tensors missing or unknown: {', '.join(sorted(own.keys() ^ tensors.keys()))}")
        for name, layer in norm_layers(self.net).items():
            for row_name in layer.rows:
                rows = len(tensors[f"net.{name}.{row_name}"])
                if rows != self.hnet.num_tasks:
                    raise ValueError(
                        f"net.{name}.{row_name} has {rows} rows of statistics, but there are {self.hnet.num_tasks} tasks"
                    )
        for name, value in tensors.items():
            if own[name].shape != value.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(own[name].shape)}")
        with torch.no_grad():
            for name, value in tensors.items():
                own[name].copy_(value)
