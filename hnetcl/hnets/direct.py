"""The direct hypernetwork: holds the weights themselves. This is how methods without a hypernetwork run."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hnetcl.hnets.base import HyperNetwork, Shapes, initial_values
from hnetcl.patterns import matching


class DirectHyperNetwork(HyperNetwork):
    """The main network's parameters, some shared by all tasks and some kept once per task.

    Args:
        shapes, num_tasks, initial: as for every hypernetwork; the parameters start at `initial`.
        per_task: name patterns (as in a shell) of the parameters that each task has for itself. ("head.*",) is the multi-head
            network of task-incremental baselines, ("*",) a network per task.

    Raises:
        ArgumentError: a pattern that no name matches.
    """

    def __init__(
        self,
        shapes: Shapes,
        num_tasks: int,
        per_task: Sequence[str] = ("head.*",),
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(shapes, num_tasks, initial)
        values = initial_values(self.shapes) if initial is None else initial
        chosen = set(matching("per_task", per_task, list(self.shapes)))
        self.is_own = {name: name in chosen for name in self.shapes}
        flat = {name: values[name].detach().float().flatten() for name in self.shapes}
        empty = [torch.zeros(0)]
        self.shared = nn.Parameter(torch.cat(empty + [v for name, v in flat.items() if not self.is_own[name]]))
        own = torch.cat(empty + [v for name, v in flat.items() if self.is_own[name]])
        self.own = nn.Parameter(own.repeat(num_tasks, 1))

    @property
    def embeddings(self) -> None:
        return None

    def task_parameters(self) -> list[nn.Parameter]:
        return [self.own]

    def fresh_entries(self) -> dict[str, Tensor]:
        """A copy of the newest task's own parameters."""
        return {"own": self.own.detach()[-1:]}

    def written(self, tasks: Tensor) -> dict[str, Tensor]:
        sizes = {name: shape.numel() for name, shape in self.shapes.items()}
        shared = iter(self.shared.split([n for name, n in sizes.items() if not self.is_own[name]]))
        own = iter(self.own.index_select(0, tasks).split([n for name, n in sizes.items() if self.is_own[name]], 1))
        return {name: next(own) if self.is_own[name] else next(shared).expand(len(tasks), -1) for name in sizes}
