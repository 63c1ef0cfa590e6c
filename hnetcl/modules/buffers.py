"""Buffers that training changes: a row per task of each."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hnetcl.errors import ArgumentError
from hnetcl.modules.places import all_modules, buffer_places, owner


class _Seen(NamedTuple):
    """A buffer, its version then, and its value then."""

    buffer: Tensor
    version: int
    value: Tensor


class TaskBuffers(nn.Module):
    """Keeps a row per task of every buffer of a network that changes in training; what never changes stays shared.

    Which these are is written nowhere: spectral norm, other libraries' norm layers and users' own layers count, average or
    update as they like. So every training forward is looked at (torch counts the changes of a tensor on the host), and the
    first change of a buffer opens its rows: all start at the value that the buffer had, and the network's own buffer goes back
    to it. In evaluation nothing is kept: a buffer that changes then, as a cache does, is put back. Not every function of torch
    has its changes counted, so values are compared, too: after the first training forward, and before a forward of another
    task or in the other mode (on a GPU, where tasks are tensors that it would take waiting to read, in the other mode only).

    Buffers that a layer keeps a row per task of by itself, and names in its `row_names`, as `BatchNormLayer` does, are its own.

    Args:
        num_tasks: T.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.looked = False  # at a training forward
        self.places: dict[str, list[str]] = {}  # in the network, of the buffers that have rows
        self._seen: dict[str, _Seen] = {}
        self._last: int | Tensor | None = None  # the task of the last forward; None after an evaluation

    @property
    def rows(self) -> dict[str, Tensor]:
        """[T, ...] by the name of the buffer."""
        return {key.replace("/", "."): value for key, value in self._buffers.items() if value is not None}

    def shared(self, net: nn.Module) -> dict[str, list[str]]:
        """The places of all buffers that have no rows, here or elsewhere."""
        if not any(_left_to_us(module) for module in all_modules(net)):
            return {}
        rows = self.rows
        found = {name: at for name, at in buffer_places(net).items() if name not in rows}
        return {name: at for name, at in found.items() if _is_ours(net, at[0])}

    def of(self, task: int | Tensor) -> dict[str, Tensor]:
        """Copies of a task's rows; `task` is an int or a 0-dim tensor."""
        if isinstance(task, int):
            return {name: value[task].clone() for name, value in self.rows.items()}
        place = task.reshape(1)
        return {name: value.index_select(0, place).squeeze(0) for name, value in self.rows.items()}

    @torch.no_grad()
    def store(self, task: int | Tensor, values: Mapping[str, Tensor]) -> None:
        """Overwrites a task's rows.

        Raises:
            ArgumentError: a value that has got another shape.
        """
        for name, row in self.rows.items():
            if values[name].shape != row.shape[1:]:
                raise _refuse(name, "changes its shape in training")
            if isinstance(task, int):
                row[task] = values[name]
            else:
                row.index_copy_(0, task.reshape(1), values[name].detach()[None].to(row.dtype))

    @torch.no_grad()
    def look(self, net: nn.Module, task: int | Tensor | None = None) -> None:
        """Called before a forward, of a task in training or of any in evaluation (None): remembers the shared buffers."""
        shared, now = self.shared(net), {}
        if shared and not _same_task(self._last, task):
            self._settle_uncounted(net, shared)
            self._last = task
            shared = self.shared(net)
        for name, (place, *_) in shared.items():
            buffer, seen = net.get_buffer(place), self._seen.get(name)
            if seen is None or seen.buffer is not buffer or seen.version != _version(buffer):
                seen = _Seen(buffer, _version(buffer), buffer.detach().clone())
            now[name] = seen
        self._seen = now

    def _settle_uncounted(self, net: nn.Module, shared: Mapping[str, Sequence[str]]) -> None:
        """What forwards since then have changed without a count was changed by those of the last task."""
        for name, places in shared.items():
            seen, buffer = self._seen.get(name), net.get_buffer(places[0])
            if seen is None or seen.buffer is not buffer or seen.version != _version(buffer) or _equal(buffer, seen.value):
                continue
            self._put_back(net, name, places, seen.value, self._last)

    @torch.no_grad()
    def settle(self, net: nn.Module, task: int | Tensor | None) -> None:
        """Called after a forward: opens rows for what has changed in the training of a task, and puts the buffer back.

        Args:
            task: whose rows; None where nothing is to be kept, as in evaluation.

        Raises:
            ArgumentError: a buffer that was made in training, or has got another shape.
        """
        first = task is not None and not self.looked
        self.looked = self.looked or first
        for name, places in self.shared(net).items():
            seen, buffer = self._seen.get(name), net.get_buffer(places[0])
            if seen is None:
                if task is not None:
                    raise _refuse(name, "is made in the forward: make it in the constructor")
                for owner, key in _owners(net, places):
                    del owner._buffers[key]
                continue
            uncounted = first and not _equal(buffer, seen.value)  # torch's batch norm does not have its changes counted
            if seen.buffer is buffer and seen.version == _version(buffer) and not uncounted:
                continue
            self._put_back(net, name, places, seen.value, task)

    def _put_back(self, net: nn.Module, name: str, places: Sequence[str], before: Tensor, task: int | Tensor | None) -> None:
        """Gives a changed buffer the value that it had; what it has become is kept as the task's row, where there is a task."""
        changed, value = net.get_buffer(places[0]), before.clone()  # a new tensor, for a graph may still need the changed one
        for module, key in _owners(net, places):
            module._buffers[key] = value
        if task is not None:
            self.open(net, name, value)
            self.store(task, {**self.of(task), name: changed})

    def open(self, net: nn.Module, name: str, value: Tensor) -> None:
        """Rows for a buffer, all of which start at `value`."""
        if "/" in name:
            raise _refuse(name, "has a / in its name, which stands for a dot where rows are saved")
        self.places[name] = buffer_places(net)[name]
        self._seen.pop(name, None)
        self.register_buffer(name.replace(".", "/"), value.detach().expand(self.num_tasks, *value.shape).clone())

    def add_task(self, net: nn.Module) -> None:
        """One more row, which starts where the first ones did."""
        self.num_tasks += 1
        for name, rows in self.rows.items():
            fresh = net.get_buffer(name).detach().to(rows)
            self._buffers[name.replace(".", "/")] = torch.cat([rows, fresh[None]])


def _left_to_us(module: nn.Module) -> bool:
    """Whether a module has buffers that it does not keep a row per task of by itself."""
    return bool(module._buffers) and not module._buffers.keys() <= set(getattr(module, "row_names", ()))


def _is_ours(net: nn.Module, place: str) -> bool:
    module, key = owner(net, place)
    return key not in getattr(module, "row_names", ())


def _owners(net: nn.Module, places: Sequence[str]) -> list[tuple[nn.Module, str]]:
    """The modules at these places, and the buffer's name in each."""
    return [owner(net, place) for place in places]


def _same_task(last: int | Tensor | None, task: int | Tensor | None) -> bool:
    if last is None or task is None:
        return last is task
    if any(isinstance(each, Tensor) and not each.is_cpu for each in (last, task)):
        return True
    return int(last) == int(task)


def _equal(buffer: Tensor, value: Tensor) -> bool:
    """Bit for bit, but that NaN equals NaN."""
    if buffer.shape != value.shape or buffer.dtype != value.dtype:
        return False
    return bool(((buffer == value) | ((buffer != buffer) & (value != value))).all())


def _version(buffer: Tensor) -> int:
    return 0 if buffer.is_inference() else buffer._version


def _refuse(name: str, what: str) -> ArgumentError:
    return ArgumentError("net", name, f"this buffer {what}, so no row per task can be kept of it")
