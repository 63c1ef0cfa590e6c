"""The direct hypernetwork: holds the weights themselves. This is how methods without a hypernetwork run."""

from collections.abc import Mapping, Sequence
from operator import index
from typing import Literal, SupportsIndex

import torch
from torch import Tensor, nn

from hnetcl.errors import ArgumentError
from hnetcl.hnets.base import BaseHyperNetwork, Shapes, default_values
from hnetcl.numbers import flat_numbers
from hnetcl.patterns import matching
from hnetcl.registry import register


@register("hnet", "direct")
class DirectHyperNetwork(BaseHyperNetwork):
    """The main network's parameters, some shared by all tasks and some held once per task.

    Args:
        shapes, num_tasks, initial: as for every hypernetwork; the parameters start at `initial`.
        given: whether every task starts at `initial` exactly, whatever `heads` says.
        num_outputs: K, logits per task, by which the layer that makes them is found; None where they are not known.
        head: "task", "shared" or "all": which logits the network has.
        per_task: name patterns (as in a shell) of the parameters that each task has for itself. ("head.*",) is the multi-head
            network of task-incremental baselines, ("*",) a network per task. None: with head "task" those of the layer that
            makes the logits, see `logits_layer`; with any other head none.
        heads: how a task's own parameters start. "same": at `initial`, for all tasks. "drawn": each task at another draw, the
            values of `initial` in another order, as published baselines have it: heads that start as one go on to use the same
            directions of their input, and a new task then pulls the old ones with it. An added task starts at the newest one.

    Raises:
        ArgumentError: a pattern that no name matches; or no pattern is given and no layer makes the logits.
    """

    def __init__(
        self,
        shapes: Shapes,
        num_tasks: int,
        initial: Mapping[str, Tensor] | None = None,
        given: bool = False,
        num_outputs: int | None = None,
        head: str = "task",
        *,
        per_task: Sequence[str] | None = None,
        heads: Literal["same", "drawn"] = "same",
    ) -> None:
        super().__init__(shapes, num_tasks, initial)
        values = default_values(self.shapes) if initial is None else initial
        names = list(self.shapes)
        if per_task is None:
            own = logits_layer(self.shapes, num_outputs) if head == "task" else []
        else:
            own = matching("per_task", per_task, names)
        self.is_own = {name: name in own for name in names}
        # Each a tensor of its own: the gradients of parts of one long tensor would have to be put together in every step.
        numbers = {name: flat_numbers(values[name]).clone() for name in names}
        self.shared = nn.ParameterDict({_key(n): v.reshape(self.shapes[n]) for n, v in numbers.items() if not self.is_own[n]})
        first = [numbers[name] for name in names if self.is_own[name]]
        draws = [[v if t == 0 or given or heads == "same" else _drawn(v) for v in first] for t in range(num_tasks)]
        self.own = nn.Parameter(torch.stack([torch.cat([torch.zeros(0), *draw]) for draw in draws]))

    @property
    def embeddings(self) -> None:
        return None

    def task_parameters(self) -> list[nn.Parameter]:
        return [self.own]

    def fresh_entries(self) -> dict[str, Tensor]:
        """A copy of the newest task's own parameters."""
        return {"own": self.own.detach()[-1:]}

    def forward(self, task: SupportsIndex | Tensor) -> dict[str, Tensor]:
        if isinstance(task, Tensor) and task.ndim:
            return super().forward(task)
        self.require_task(task)
        place = task.reshape(1) if isinstance(task, Tensor) else torch.full((1,), index(task), device=self.own.device)
        own = {name: value.reshape(self.shapes[name]) for name, value in self._own(place).items()}
        return {n: own[n] if is_own else self.shared[_key(n)] for n, is_own in self.is_own.items()}  # views would cost time

    def generate(self, tasks: Tensor) -> dict[str, Tensor]:
        own = self._own(tasks)
        shared = {name: self.shared[_key(name)].reshape(1, -1) for name in self.shapes if name not in own}
        return {name: own[name] if name in own else shared[name].expand(len(tasks), -1) for name in self.shapes}

    def _own(self, tasks: Tensor) -> dict[str, Tensor]:
        """The tasks' own parameters, by name, each flat: [B] -> [B, n]."""
        sizes = {name: shape.numel() for name, shape in self.shapes.items() if self.is_own[name]}
        if not sizes:
            return {}
        return dict(zip(sizes, self.own.index_select(0, tasks).split(list(sizes.values()), 1), strict=True))


def _key(name: str) -> str:
    """A parameter's name as a key of a `ParameterDict`, which takes no dots."""
    return name.replace(".", "/")


def _drawn(values: Tensor) -> Tensor:
    """Another draw like this one: its values in another order."""
    return values[torch.randperm(len(values))]


def logits_layer(shapes: Mapping[str, torch.Size], num_outputs: int | None = None) -> list[str]:
    """The names of the parameters that make the logits, as far as names and shapes tell.

    Those of `head`, or of what is inside it, where there is one. Else those of the last layer, in the order of the names, that
    is linear or a convolution and K wide; of the last such layer of any width, where K is not known.

    Args:
        shapes: name -> shape.
        num_outputs: K, or None.

    Raises:
        ArgumentError: there is no such layer.
    """
    head = [name for name in shapes if name.startswith("head.")]
    if head:
        return head
    layers: dict[str, list[str]] = {}
    for name in shapes:
        layers.setdefault(_layer(name), []).append(name)
    found = [names for names in layers.values() if _makes(num_outputs, [shapes[name] for name in names])]
    if not found:
        wide = "" if num_outputs is None else f" of {num_outputs} outputs"
        rule = f"no linear or convolution layer{wide} is generated, to be a task's own; give patterns of names, [] for none"
        raise ArgumentError("per_task", None, rule)
    return found[-1]


def _layer(name: str) -> str:
    """The layer that a parameter belongs to, whatever its weight is computed from."""
    return name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]


def _makes(num_outputs: int | None, shapes: Sequence[torch.Size]) -> bool:
    """Whether a layer with parameters of these shapes is linear or a convolution, real, with so many outputs.

    Its matrices are [K, ...], ours [1, K, ...]; its vectors are [K], which those of whitening norm layers are not.
    """
    matrices = [shape for shape in shapes if len(shape) > 1]
    widths = {shape[1] if shape[0] == 1 and len(shape) > 2 else shape[0] for shape in matrices}
    widths |= {shape[0] for shape in shapes if len(shape) == 1}
    return bool(matrices) and len(widths) == 1 and num_outputs in (None, *widths)
