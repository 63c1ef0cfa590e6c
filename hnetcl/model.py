"""A main network and the hypernetwork that writes it, as one module."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hnetcl.bn import norm_layers, row_parameters, using_task
from hnetcl.hnets import HyperNetwork


class HyperModel(nn.Module):
    """logits = model(x, task=2): the hypernetwork writes the parameters of task 2, its batch-norm layers use row 2.

    The network's own parameters are switched off: all that learns is the hypernetwork, and rows of statistics that are
    parameters themselves. Norm layers that keep rows get one for every task.

    Args:
        net: maps x to logits.
        hnet: writes `written_parameters(net)`.

    Raises:
        ValueError: the hypernetwork does not write exactly the network's parameters.
    """

    def __init__(self, net: nn.Module, hnet: HyperNetwork) -> None:
        super().__init__()
        shapes = {name: parameter.shape for name, parameter in written_parameters(net).items()}
        if shapes != hnet.shapes:
            differing = sorted(shapes.items() ^ hnet.shapes.items())
            raise ValueError(f"the hypernetwork must write the network's parameters; they differ in {differing}")
        self.net, self.hnet = net.requires_grad_(False), hnet
        for layer in norm_layers(net).values():
            while 0 < layer.num_stats < hnet.num_tasks:
                layer.checkpoint_stats()
        for parameter in row_parameters(net).values():
            parameter.requires_grad_()

    def forward(self, x: Tensor, task: int, stats: int | Tensor | str | None = None) -> Tensor:
        """Logits [N, K] of a task.

        Args:
            x: a batch for the network.
            task: whose parameters.
            stats: whose row of statistics, or `bn.BATCH`; the task's own where left out.
        """
        return self.run(self.hnet(task), x, task if stats is None else stats)

    def all_tasks(self, x: Tensor) -> Tensor:
        """Logits [T, N, K] of all tasks in one pass, in evaluation: each task's parameters with its own statistics.

        Raises:
            ValueError: the model is in training mode, where a pass would update all rows at once.
        """
        if self.training:
            raise ValueError("all_tasks evaluates: call model.eval() before it")
        tasks = torch.arange(self.hnet.num_tasks, device=x.device)
        logits: Tensor = torch.func.vmap(lambda params, task: self.run(params, x, task))(self.hnet(tasks), tasks)
        return logits

    def run(self, params: dict[str, Tensor], x: Tensor, stats: int | Tensor | str) -> Tensor:
        """Logits [N, K] of the network with these parameters and that row of statistics."""
        with using_task(self.net, stats):
            logits: Tensor = functional_call(self.net, params, (x,))
        return logits

    def saved_tensors(self) -> dict[str, Tensor]:
        """All that a reload needs: the hypernetwork, and the network's buffers with every statistics row."""
        tensors = {f"hnet.{name}": value for name, value in self.hnet.state_dict().items()}
        written = set(self.hnet.shapes)
        return tensors | {f"net.{n}": v for n, v in self.net.state_dict().items() if n not in written}

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


def written_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """What a hypernetwork writes: all parameters but rows of statistics, by name."""
    rows = row_parameters(net)
    return {name: parameter for name, parameter in net.named_parameters() if name not in rows}
