"""What tells tasks apart by more than logits: it learns something about each task when its training ends."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hnetcl.inference.inputs import INPUT
from hnetcl.model import HyperModel
from hnetcl.tasks import Task, TaskSequence

Scorer = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""Inputs of layers by name, [N, D] each, and logits [N, K], both under one task -> how sure it is that samples are its [N]."""


class Recognizer(nn.Module):
    """Keeps a row for each task in buffers [T, ...], which a run saves with its model.

    A subclass is a part of the kind `inference`; its keyword-only arguments are its configuration.
    """

    opened = False
    """Whether there are buffers."""
    criterion: Mapping[str, Any] | None = None
    """The configuration that it was made of; None where nobody says."""
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

    def check(self, sequence: TaskSequence) -> None:
        """Called once before the tasks of a sequence are trained, or looked at.

        Raises:
            ArgumentError: it can't learn from them.
        """

    def check_rows(self, model: HyperModel) -> None:
        """Looks at rows that come from a file.

        Raises:
            ValueError: they are not those of the model: not one for each task, not finite, or of a layer that it has not.
        """
        modules = {INPUT, *(name for name, _ in model.net.named_modules())}
        strange = [name for name in self.watches if name not in modules]
        if strange:
            raise ValueError(f"tasks are recognised by a layer {strange[0]!a}, which the network has not")
        for name, value in self.named_buffers():
            if not value.ndim or len(value) != model.hnet.num_tasks:
                raise ValueError(f"recognizer.{name} is {list(value.shape)}, but there are {model.hnet.num_tasks} tasks")
            if not value.isfinite().all():
                raise ValueError(f"recognizer.{name} is not finite")

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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Opens the rows that were saved, where there are none yet."""
        own = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        if own and not self.opened:
            self.open_as(own)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def kept_bytes(self) -> int:
        """Memory of all rows."""
        return sum(value.nbytes for value in self.buffers())
