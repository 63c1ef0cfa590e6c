"""Samples of old tasks in a memory of fixed size."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Samples(NamedTuple):
    """Some of the samples that a memory holds.

    Args:
        x: [N, ...].
        y: labels [N].
        logits: [N, K] that the model gave when the sample was stored.
    """

    x: Tensor
    y: Tensor
    logits: Tensor


class Memory:
    """A class-balanced reservoir: every class seen so far has the same share of the memory, and in it each sample of the class
    that came by has the same chance to be (reservoir sampling, Vitter 1985). As classes come, the shares shrink.

    Nothing waits for a GPU: places are computed on the device.

    Args:
        size: samples.
        classes: of each task, or one number for all of them. Here they are numbered task after task.
        places: of a class, whatever has been seen; None: an equal share of `size` for each class seen so far.

    Source: Chrysakis & Moens 2020, Online continual learning from imbalanced data; with equal shares, for classes are known.
    """

    def __init__(self, size: int, classes: int | Sequence[int], places: int | None = None) -> None:
        self.size, self.classes, self.places = size, classes, places
        self.tensors: dict[str, Tensor] = {}  # x, y, logits [size + 1, ...]: what is not stored goes to the last place
        self.seen = torch.zeros(0, dtype=torch.long)  # samples of each class that came by

    @property
    def share(self) -> int:
        """Places of a class."""
        return self.size // max(1, len(self.seen)) if self.places is None else self.places

    def open(self, tasks: int) -> None:
        """Makes room for the classes of so many tasks. What is left of a class is a random part of what there was."""
        before, old = self.share, len(self.seen)
        opened = tasks * self.classes if isinstance(self.classes, int) else sum(self.classes[:tasks])
        self.seen = torch.cat([self.seen, self.seen.new_zeros(opened - old)])
        if not old or not self.tensors:
            return
        for name, value in self.tensors.items():
            held = value[: old * before].unflatten(0, (old, before))[:, : self.share].flatten(0, 1)
            self.tensors[name] = torch.zeros_like(value)
            self.tensors[name][: len(held)] = held

    def add(self, x: Tensor, y: Tensor, logits: Tensor, classes: Tensor, generator: torch.Generator) -> None:
        """Looks at a batch of N samples, and stores some of them.

        Args:
            x, y, logits: as in `Samples`.
            classes: of the samples [N], numbered as in `classes` above.
            generator: on their device.
        """
        given = {"x": x, "y": y, "logits": logits}
        if not self.tensors:
            self.tensors = {n: v.new_zeros((self.size + 1, *v.shape[1:])) for n, v in given.items()}
            self.seen = self.seen.to(x.device)
        is_class = classes[:, None] == torch.arange(len(self.seen), device=x.device)
        number = self.seen[classes] + is_class.long().cumsum(0).gather(1, classes[:, None])[:, 0] - 1  # in its class, from 0
        drawn = (torch.rand(len(x), generator=generator, device=x.device) * (number + 1)).long()
        place = torch.where(number < self.share, number, drawn)
        place = torch.where(place < self.share, classes * self.share + place, self.size)
        replaced = (place[:, None] == place).triu(1).any(1)  # by a later sample of the batch
        place = torch.where(replaced, self.size, place)
        for name, value in given.items():
            self.tensors[name].index_copy_(0, place, value)
        self.seen += is_class.sum(0)

    def draw(self, number: int, classes: Tensor, generator: torch.Generator) -> Samples:
        """Stored samples, with replacement: each from a random one of these classes that has some.

        Args:
            classes: which come into question, bool [all classes seen].
        """
        held = self.seen.clamp(max=self.share)
        weights = (classes & (held > 0)).float()
        drawn = torch.multinomial(weights, number, replacement=True, generator=generator)
        inside = (torch.rand(number, generator=generator, device=drawn.device) * held[drawn]).long()
        place = drawn * self.share + inside
        return Samples(*(self.tensors[name].index_select(0, place) for name in Samples._fields))

    def state_dict(self) -> dict[str, Tensor]:
        """All that is stored."""
        return {"seen": self.seen, **self.tensors}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        self.tensors = dict(state)
        self.seen = self.tensors.pop("seen", torch.zeros(0, dtype=torch.long))

    def to(self, device: torch.device) -> None:
        """Moves all to a device."""
        self.seen = self.seen.to(device)
        self.tensors = {name: value.to(device) for name, value in self.tensors.items()}
