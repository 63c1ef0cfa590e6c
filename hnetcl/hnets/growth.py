"""One more entry in a parameter that has one per task, without the optimizer noticing."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def replace_parameter(optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter) -> None:
    """Has an optimizer go on with `new`, which holds the entries of `old` and fresh ones behind them.

    State of the parameter's shape (moments, momentum) grows by the value at which the optimizer starts it: zeros, or Adagrad's
    `initial_accumulator_value`. All other state, as Adam's count of steps, is kept. An optimizer that does not hold `old` is
    left as it is.

    Args:
        optimizer: any of torch's that keep their state by parameter.
        old: [T, ...].
        new: [T + n, ...].
    """
    for group in optimizer.param_groups:
        if not any(each is old for each in group["params"]):
            continue
        group["params"] = [new if each is old else each for each in group["params"]]
        start = group.get("initial_accumulator_value", 0.0)
        state = optimizer.state.pop(old, {})
        if state:
            optimizer.state[new] = {key: _grown(value, old, new, start) for key, value in state.items()}


def _grown(value: object, old: Tensor, new: Tensor, start: float) -> object:
    if not isinstance(value, Tensor) or value.shape != old.shape:
        return value
    return torch.cat([value, value.new_full((len(new) - len(old), *old.shape[1:]), start)])
