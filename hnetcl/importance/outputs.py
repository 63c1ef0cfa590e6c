"""How much each number that was written for an old task counts."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.importance.fisher import fisher_information
from hnetcl.model import HyperModel
from hnetcl.tasks import Loss, Task


class Importance:
    """F [T, P], the product of what is learned about each task after its training and what is given.

    Args:
        kind: "fisher": the diagonal Fisher information, divided by its mean over the P values; or "none".
        samples: training images for it, drawn once; all where a task has fewer.
        masks: [T, P], any dtype; None for none.
    """

    def __init__(self, kind: str, samples: int, masks: Tensor | None) -> None:
        self.kind, self.samples, self.masks = kind, samples, masks
        self.fisher: list[Tensor] = []  # [P] of every task that was trained, on the CPU

    def learn(
        self,
        model: HyperModel,
        task: int,
        data: Task,
        generator: torch.Generator,
        active: Tensor | None = None,
        loss: Loss = "cross_entropy",
    ) -> None:
        """Looks at a task that has just been trained; `active` and `loss` as in `fisher_information`."""
        if self.kind == "none":
            return
        images = data.train.images
        drawn = torch.randperm(len(images), generator=generator, device=images.device)[: self.samples]
        fisher = fisher_information(model, task, data.preprocess(images[drawn]), generator, active, loss)
        mean = fisher.mean()
        relative = torch.where(mean > 0, fisher / mean, 1.0)  # a network that is sure of everything tells nothing
        self.fisher = [*self.fisher[:task], relative.cpu()]

    def of(self, tasks: int, size: int, device: torch.device) -> Tensor | None:
        """F of the first tasks [tasks, size] on a device; None stands for ones.

        Raises:
            ArgumentError: there is not one row for each of them, or the masks are of another size.
        """
        factors = None
        if self.kind == "fisher":
            if len(self.fisher) < tasks:
                raise ArgumentError(
                    "importance", self.kind, f"end_task was called after {len(self.fisher)} of {tasks} old tasks"
                )
            factors = torch.stack(self.fisher[:tasks]).to(device)
        if self.masks is not None:
            if len(self.masks) < tasks or self.masks.shape[1:] != (size,):
                rule = f"must be of shape [tasks, {size}]; there are {tasks} old tasks"
                raise ArgumentError("masks", tuple(self.masks.shape), rule)
            masks = self.masks[:tasks].to(device)
            factors = masks if factors is None else factors * masks
        return factors

    def state(self) -> dict[str, Tensor]:
        """What was learned."""
        return {"fisher": torch.stack(self.fisher)} if self.fisher else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.fisher = list(state["fisher"].cpu().unbind()) if "fisher" in state else []
