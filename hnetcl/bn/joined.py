"""Layers of a user's own subclass of torch's batch norm that normalize as a `BatchNormLayer` does."""

from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hnetcl.bn.layer import BatchNormLayer

TORCHS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
OWN, PLAIN, CHILDREN = "own", "plain", "children"
HOOKS = [name for name in vars(nn.Module()) if "hook" in name]
TORCHS_ATTRIBUTES = {*vars(nn.SyncBatchNorm(1)), "weight", "bias"}
AXES: dict[type, tuple[int, ...]] = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}


class Joined:
    """Of a class that `join` made: its objects are copied and pickled by what it was made of."""

    origin: ClassVar[tuple[type, str]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return blank, self.origin, self.__getstate__()


def _then_children(self: Any, x: Tensor, **given: Any) -> Any:
    """Normalizes, then calls the submodules in their order, as timm's `BatchNormAct2d` does."""
    y = BatchNormLayer.forward(self, x, **given)
    for child in self._modules.values():
        y = child(y)
    return y


FORWARDS: dict[str, Callable[..., Any]] = {PLAIN: BatchNormLayer.forward, CHILDREN: _then_children}


@lru_cache(256)
def join(kind: type, forward: str) -> type:
    """A class of the name of `kind` that normalizes as a `BatchNormLayer`, which comes where torch's own forward did.

    Args:
        kind: a subclass of one of torch's layers.
        forward: "own": that of the class, whose `super().forward(x)` is then ours; "plain": ours; "children": ours, followed by
            the submodules.
    """
    own: dict[str, Any] = {"__module__": kind.__module__, "__doc__": kind.__doc__, "origin": (kind, forward)}
    if forward != OWN:
        own["forward"] = FORWARDS[forward]
    return type(kind.__name__, (Joined, kind, BatchNormLayer), own)


def blank(kind: type, forward: str) -> Any:
    """An object of the class, without its state."""
    joined: Any = join(kind, forward)
    return joined.__new__(joined)


def clash(old: _BatchNorm) -> str | None:
    """A name that the layer uses for something of its own, and a `BatchNormLayer` for something else."""
    theirs = {name for cls in type(old).__mro__ if cls not in BatchNormLayer.__mro__ + TORCHS for name in vars(cls)}
    ours = {name for cls in BatchNormLayer.__mro__ if cls not in _BatchNorm.__mro__ for name in vars(cls)}
    methods = {n for n in theirs & ours if not n.startswith("__") and not hasattr(_BatchNorm, n)}
    attributes = {*vars(old), *old._parameters, *old._buffers, *old._modules} - TORCHS_ATTRIBUTES
    values = attributes & (ours | vars(BatchNormLayer(1)).keys())
    return next(iter(sorted(methods | values)), None)


def adopt(new: nn.Module, old: _BatchNorm) -> None:
    """Gives a new layer all that torch's layers do not have: hooks, attributes, submodules, parameters, buffers."""
    for name, value in vars(old).items():
        if name in HOOKS or name not in vars(new):
            vars(new)[name] = value
    for part in ("_parameters", "_buffers", "_modules"):
        own, theirs = vars(new)[part], vars(old)[part]
        for name, value in theirs.items():
            if name not in {"running_mean", "running_var", "num_batches_tracked"} and name not in {*own, *new._parameters}:
                own[name] = value
    new._non_persistent_buffers_set |= old._non_persistent_buffers_set


@torch.no_grad()
def agree(old: _BatchNorm, converted: Callable[[_BatchNorm], BatchNormLayer]) -> bool:
    """Whether a conversion gives the outputs and the statistics of the layer, in evaluation and in training.

    Tried on copies without hooks, with random parameters and statistics, in float32 on a CPU. The converted layer has a first
    row that is not to be used, so that code that reads the statistics itself is found out.
    """
    tried = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        old = _bare(old).cpu().float()
        for t in (*old.parameters(), *old.buffers()):
            if t.is_floating_point():
                t.add_(torch.rand_like(t))
        new = converted(_bare(old))
        new.sync = False
        if new.num_stats:
            new.checkpoint_stats()
            new.row = 1
            for name in ("running_mean", "running_var"):
                new.rows[name][0] = 1e6
        for axes in next((axes for kind, axes in AXES.items() if isinstance(old, kind)), (4, 2, 3, 5)):
            x = torch.randn(12, old.num_features, *[4] * (axes - 2))
            for training in (False, True, False):
                try:
                    expected = _run(old.train(training), x)
                except Exception:  # whatever a user's code raises where it takes no such input
                    break
                try:
                    torch.testing.assert_close(_run(new.train(training), x), expected, rtol=1e-4, atol=1e-4)
                    for name, row in new.rows.items():
                        torch.testing.assert_close(row[1], old.get_buffer(name), rtol=1e-4, atol=1e-4)
                except Exception:  # the same of code that can't do with our rows
                    return False
                tried = True
    return tried


def _run(module: nn.Module, x: Tensor) -> Any:
    torch.manual_seed(1)  # of dropout
    return module(x.clone())


def _bare(old: _BatchNorm) -> _BatchNorm:
    """A copy without hooks, which may do anything to what is around the layer."""
    empty: dict[int, Any] = {id(vars(m)[name]): type(vars(m)[name])() for m in old.modules() for name in HOOKS}
    return deepcopy(old, empty)
