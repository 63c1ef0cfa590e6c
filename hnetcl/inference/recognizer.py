"""What tells tasks apart by more than logits: it learns something about each task when its training ends."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from hnetcl.model import HyperModel
from hnetcl.tasks import Task

Scorer = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""Inputs of layers by name, [N, D] each, and logits [N, K], both under one task -> how sure it is that samples are its [N]."""


class Recognizer(nn.Module):
    """Keeps a row for each task in buffers [T, ...], which a run saves with its model.

    A subclass is a part of the kind `inference`; its keyword-only arguments are its configuration.
    """

    opened = False
    """Whether there are buffers."""
    watches: tuple[str, ...] = ()
    """The layers whose inputs it looks at (see `inputs.watched`)."""

    def open(self, model: HyperModel, x: Tensor, classes: int) -> None:
        """Makes the buffers, for a network and its input [N, ...]; a task has so many classes at most."""
        raise NotImplementedError

    def open_as(self, tensors: Mapping[str, Tensor]) -> None:
        """The same from what a run has saved; values are loaded later.

        Raises:
            ValueError: these are not the tensors of such a recognizer.
        """
        raise NotImplementedError

    def learn(self, model: HyperModel, task: int, data: Task, batch_size: int) -> None:
        """Looks at a task that has just been trained, under its own parameters and rows of statistics."""
        raise NotImplementedError

    def scorer(self, task: int) -> Scorer:
        """What gives samples their score under a task's network: the higher, the surer."""
        raise NotImplementedError

    def add_task(self) -> None:
        """Opens a row for one more task."""
        for name, value in list(self.named_buffers()):
            module, _, own = name.rpartition(".")
            self.get_submodule(module).register_buffer(own, torch.cat([value, torch.zeros_like(value[:1])]))

    @property
    def kept_bytes(self) -> int:
        """Memory of all rows."""
        return sum(value.nbytes for value in self.buffers())
