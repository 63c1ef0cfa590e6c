"""The auxiliary losses of a layer that wait to be added to a training loss."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from hnetcl.kernels.autograd import learns


class PendingLosses:
    """The sum of the losses of a layer's training forwards that have not been taken yet, with its graph.

    Copies and pickles start empty, for what is pending belongs to the forwards of one object.

    Attributes:
        total: the sum [], or None.
        count: of how many forwards. A float, for torch's compiler would compile anew for each integer.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0.0

    def __reduce__(self) -> tuple[type["PendingLosses"], tuple[()]]:
        return PendingLosses, ()

    def add(self, loss: Callable[[], Tensor], layer: str, limit: int) -> None:
        """Adds the loss of a training forward. A forward that `torch.utils.checkpoint` runs again in backward has no loss, for
        it had one when it ran first.

        Args:
            loss: computes it; called where it is wanted.
            layer: for messages.
            limit: the largest `count`.

        Raises:
            ValueError: `limit` losses are pending, which are dropped; or reentrant recomputation, in which the forward that ran
                first had no gradients and so no loss.
        """
        hooked = not torch.compiler.is_compiling() and torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() >= 0:  # within a backward pass
            if hooked:  # as non-reentrant recomputation is
                return
            raise ValueError(f"{layer} has an auxiliary loss, which needs checkpoint(..., use_reentrant=False)")
        if self.count >= limit:
            self.total, self.count = None, 0.0
            raise ValueError(
                f"{layer} has an auxiliary loss, which {limit} training forwards did not use: "
                "add hnetcl.auxiliary_loss(module) to the training loss"
            )
        # What this loss saves is small. It must not be dropped with what a checkpoint drops: to compute it again would be to
        # compute it from the row that has moved meanwhile.
        with torch.autograd.graph.saved_tensors_hooks(_same, _same) if hooked else nullcontext():
            value = loss()
        if learns(value):
            self.total = value if self.total is None or _is_over(self.total) else self.total + value
            self.count += 1.0

    def take(self) -> Tensor | None:
        """The sum of all pending losses, which are pending no longer; None where there are none.

        Raises:
            ValueError: they were computed in a function transform of `torch.func` that is over.
        """
        total, self.total, self.count = self.total, None, 0.0
        if total is not None and _is_over(total):
            raise ValueError("an auxiliary loss is left of a torch.func transform: call hnetcl.auxiliary_loss within it")
        return total


def _is_over(t: Tensor) -> bool:
    """Whether t was made within a transform of torch.func that has returned since."""
    functorch: Any = torch._C._functorch  # whose annotations leave this function out
    return not torch.compiler.is_compiling() and bool(functorch.is_dead_tensor_wrapper(t))


def _same(t: Tensor) -> Tensor:
    return t
