"""Where the coming optimizer step would lead, without taking it."""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Mapping
from copy import deepcopy
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from hnetcl.errors import ArgumentError

Gradients = Mapping[nn.Parameter, Tensor]


class Lookahead:
    r"""theta + Delta theta: what `optimizer.step()` would make of the parameters, given their gradients.

        lookahead = Lookahead(optimizer)
        loss.backward()                                         # of the task alone
        values = lookahead.ahead({p: p.grad for p in hnet.parameters() if p.grad is not None})
        penalty = evaluate(hnet, values, lambda hnet: distance(hnet.flat(tasks), targets))
        penalty.backward()                                      # comes on top, as the gradient at theta + Delta theta
        optimizer.step()

    No formula is derived anew: a twin of the optimizer takes its step on copies of parameters, gradients, state and options.
    So the result is exact for every optimizer, weight decay and schedules included, at the price of one more step and one copy
    of these. The copies are kept from call to call. Step hooks are not run for the twin.

    Args:
        optimizer: any that steps without a closure and keeps its state in `optimizer.state[parameter]`, as torch's do. Groups
            may be added, and options and state change, between calls.

    Raises:
        ArgumentError: the optimizer needs a closure (LBFGS): its steps depend on losses that are yet to be computed.

    Source: von Oswald et al. 2020 (arXiv:1906.00695), equation 2. The regularizer's gradient takes Delta theta as a constant,
    as the authors' public code does unless told otherwise.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        kind = type(optimizer)
        closure = signature(kind.step).parameters.get("closure")
        if closure is not None and closure.default is Parameter.empty:
            raise ArgumentError("optimizer", kind.__name__, "must be able to step without a closure")
        self.optimizer = optimizer
        self._twin = object.__new__(kind)
        self._twins: dict[nn.Parameter, nn.Parameter] = {}
        self._copies: dict[Hashable, Tensor] = {}
        self._pairs: defaultdict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]]
        self._pairs = defaultdict(lambda: ([], []))

    @torch.no_grad()
    def next_values(self, gradients: Gradients) -> dict[nn.Parameter, Tensor]:
        """The values after a step with these gradients. Parameters, state and gradients stay what they are.

        Args:
            gradients: parameter -> gradient of its shape; parameters left out stand still, as those whose `.grad` is None do.

        Returns:
            For every parameter in `gradients` a tensor of its shape, without graph, that the next call overwrites.

        Raises:
            ArgumentError: a sparse gradient.
            ValueError: a gradient of another shape than its parameter, or for a parameter that the optimizer doesn't have.
        """
        groups = self.optimizer.param_groups
        unknown = gradients.keys() - {p for group in groups for p in group["params"]}
        if unknown:
            raise ValueError(f"gradients of {len(unknown)} parameters that the optimizer doesn't have")
        for p, gradient in gradients.items():
            if gradient.layout != torch.strided:
                raise ArgumentError("gradients", gradient.layout, "must be dense")
            if gradient.shape != p.shape:
                raise ValueError(f"a gradient of shape {tuple(gradient.shape)} for a parameter of shape {tuple(p.shape)}")
        twin = self._twin
        vars(twin).update(vars(self.optimizer))
        vars(twin).pop("step", None)  # a schedule counts the optimizer's steps through one of the instance's own
        twin._optimizer_step_pre_hooks, twin._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
        twin.state, twin.param_groups = defaultdict(dict), []
        for index, group in enumerate(groups):
            options = {name: value for name, value in group.items() if name != "params"}
            params = [self._of(p, gradients[p]) for p in group["params"] if p in gradients]
            twin.param_groups.append({**self._mirror(index, options), "params": params})
        for sources, copies in self._pairs.values():
            torch._foreach_copy_(copies, sources)
        self._pairs.clear()
        twin.step()
        return {p: self._twins[p].detach() for p in gradients}

    def ahead(self, gradients: Gradients) -> dict[nn.Parameter, Tensor]:
        """theta + stop_gradient(Delta theta): `next_values` as functions of the parameters, with derivative one.

        Raises:
            ArgumentError, ValueError: as `next_values` does.
        """
        return {p: p + (value - p.detach()) for p, value in self.next_values(gradients).items()}

    def _of(self, parameter: nn.Parameter, gradient: Tensor) -> nn.Parameter:
        """The twin of a parameter, with its gradient and state."""
        if parameter not in self._twins:
            self._twins[parameter] = nn.Parameter(torch.empty_like(parameter), requires_grad=False)
        twin = self._twins[parameter]
        self._copy(parameter, twin)
        twin.grad = self._copied((parameter, "gradient"), gradient)
        state = self.optimizer.state.get(parameter)
        if state:  # before the first step there is none, and the twin starts its own
            self._twin.state[twin] = self._mirror((parameter, "state"), state)
        return twin

    def _mirror(self, owner: Hashable, values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: self._copied((owner, name), value) if isinstance(value, Tensor) else deepcopy(value)
            for name, value in values.items()
        }

    def _copied(self, key: Hashable, source: Tensor) -> Tensor:
        """A copy of a tensor in memory that is ours alone: what the twin's step leaves may share memory with anything."""
        copy = self._copies.get(key)
        if copy is None or (copy.shape, copy.dtype, copy.device) != (source.shape, source.dtype, source.device):
            copy = self._copies[key] = torch.empty_like(source)
        self._copy(source, copy)
        return copy

    def _copy(self, source: Tensor, copy: Tensor) -> None:
        """Notes a copy; those of one device and type are made together."""
        sources, copies = self._pairs[source.device, source.dtype]
        sources.append(source)
        copies.append(copy)


def evaluate(module: nn.Module, values: Mapping[nn.Parameter, Tensor], function: Callable[[Any], Tensor]) -> Tensor:
    """`function(module)` with some of the module's parameters at other values; what `values` leaves out stays.

    Gradients reach what the values were computed from. Any method of the module may be called, not its forward only.
    """
    names = {f"module.{name}": values[p] for name, p in module.named_parameters() if p in values}
    result: Tensor = functional_call(_Call(module, function), names, ())
    return result


class _Call(nn.Module):
    """A function of a module as a module, for `functional_call` knows forward only."""

    def __init__(self, module: nn.Module, function: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self) -> Tensor:
        return self.function(self.module)
