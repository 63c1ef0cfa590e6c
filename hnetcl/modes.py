"""Training and evaluation mode, with respect for layers that the user has set to evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Within, every layer of `module` is in evaluation mode; afterwards each has its own mode again, whatever was raised.

    `module.train(before)` would put layers that the user had set to evaluation into training mode.
    """
    before = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, training in before:
            layer.training = training


def start_training(module: nn.Module) -> None:
    """Puts a module that is in evaluation mode into training mode, as a whole.

    In a module that is in training mode already, the layers that its user has set to evaluation stay so.
    """
    if not module.training:
        module.train()
