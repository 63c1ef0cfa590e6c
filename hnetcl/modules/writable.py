"""Which modules can be given other tensors in place of their parameters."""

from collections.abc import Collection, Container

import torch
from torch import nn

from hnetcl.errors import ArgumentError
from hnetcl.modules.held import held
from hnetcl.modules.places import parameter_places


def require_writable(net: nn.Module, parameters: Collection[nn.Parameter]) -> None:
    """Refuses a network whose parameters can't be replaced everywhere, or whose state is not all tensors.

    Args:
        parameters: of the network, those that are to be replaced.

    Raises:
        ArgumentError: it keeps state that is no tensor (`get_extra_state`), is TorchScript, or holds one of these parameters in
            a plain attribute or container.
    """
    for name, module in net.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ArgumentError("net", name or type(net).__name__, "keeps extra state, which can't be saved as tensors")
        if isinstance(module, torch.jit.ScriptModule):
            raise ArgumentError("net", name or type(net).__name__, "is TorchScript, in which weights can't be replaced")
    for each in held(net, parameters):
        rule = "holds a parameter that is to be written in a plain attribute or container too, where it would stay as it is"
        raise ArgumentError("net", each.module or type(net).__name__, rule)


def require_known(net: nn.Module, names: Container[str]) -> None:
    """Refuses a network that has made parameters of other names in its forward, where nothing writes them.

    Raises:
        ArgumentError: of the first such layer.
    """
    late = [name for name in parameter_places(net) if name not in names]
    if late:
        layer = late[0].rpartition(".")[0] or late[0]
        raise ArgumentError(
            "net", layer, "this layer is made in the forward: make it in the constructor, or call the net before"
        )
