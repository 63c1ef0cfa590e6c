"""Which parameters weight decay leaves alone."""

from typing import Literal

from torch import nn

from hnetcl.bn import NormLayer, writable_parameters
from hnetcl.model import HyperModel

Decays = Literal["all", "weights"]
NORMS = (NormLayer, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def undecayed(model: HyperModel) -> set[nn.Parameter]:
    """What all tasks share and is no weight: parameters of norm layers, biases, vectors and single numbers.

    What `hnet=direct` holds counts as what it is in the main network. Of a hypernetwork that writes, its own parameters count,
    by the same rule; what it writes never decays by itself.
    """
    named = writable_parameters(model.net)
    held = {f"hnet.shared.{name.replace('.', '/')}": name for name in named}  # as `DirectHyperNetwork` calls it
    of_norms = {id(p) for module in model.net.modules() if isinstance(module, NORMS) for p in module.parameters()}
    found = set()
    for name, parameter in model.common_parameters().items():
        own = held.get(name, name.removeprefix("net."))
        is_norm = own in named and id(named[own]) in of_norms
        if is_norm or parameter.ndim < 2 or own.rpartition(".")[2] == "bias":
            found.add(parameter)
    return found
