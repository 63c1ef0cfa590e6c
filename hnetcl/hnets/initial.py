"""The initial values of a main network that a hypernetwork is to aim at."""

import math

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hnetcl.bn import writable_parameters
from hnetcl.errors import one_of
from hnetcl.layers import BaseConv, Linear
from hnetcl.numbers import real_view

Layer = Linear | BaseConv | nn.Linear | _ConvNd
INITS = ("own", "fan_in", "fan_out", "torch", "given")
LAYERS = (Linear, BaseConv, nn.Linear, _ConvNd)


def initial_parameters(net: nn.Module, init: str = "own") -> dict[str, Tensor]:
    """Values for all parameters of a network but its statistics rows, by name; tied ones under their first name; complex
    ones [*S] as real numbers [*S, 2].

    As `initial` of a hypernetwork they make it HyperFan-in or HyperFan-out initialised (Chang et al. 2020): every layer starts
    with the variance 2 / fan, whatever generates it. Where their formulas split that variance between the generators of
    weights and those of biases, biases and norm layers here start at their constants, so all of it is the weights'.

    Args:
        net: its own values are left as they are.
        init: "own", copies of the network's own values; "given" too: a hypernetwork that is told `given=True` then starts
            every task at them exactly, in place of drawing as wide. "fan_in", "fan_out": weights of linear and convolution
            layers, torch's and ours, drawn from N(0, 2 / fan) (He et al. 2015, equations 10 and 14), zeros for their biases,
            and copies of all else, norm layers included. "torch": these weights and biases drawn as torch's own layers draw
            them, evenly within 1 / sqrt(fan_in) on both sides of zero. Fans count real channels. Layers whose weight is
            computed from other parameters (weight norm, spectral norm, pruning) keep their own values.

    Raises:
        ArgumentError: no such `init`.
    """
    if init not in INITS:
        raise one_of("init", init, INITS)
    values = {name: real_view(p.detach().clone()) for name, p in writable_parameters(net).items()}
    if init in ("own", "given"):
        return values
    names = {id(p): name for name, p in net.named_parameters()}
    for layer in net.modules():
        own = dict(layer.named_parameters(recurse=False))
        if isinstance(layer, LAYERS) and "weight" in own:
            fan, most = max(1, fans(layer)[init == "fan_out"]), 1 / math.sqrt(max(1, fans(layer)[0]))
            weight = values[names[id(own["weight"])]]
            weight.uniform_(-most, most) if init == "torch" else weight.normal_(0, math.sqrt(2 / fan))
            if "bias" in own:
                bias = values[names[id(own["bias"])]]
                bias.uniform_(-most, most) if init == "torch" else bias.zero_()
    return values


def fans(layer: Layer) -> tuple[int, int]:
    """Real inputs that each real output of a layer sums, and real outputs that each real input goes to.

    In an algebra of d components an output sums d products for every number of the input; with a complex dtype two.
    """
    if isinstance(layer, Linear | BaseConv):
        return layer.fans()
    if isinstance(layer, _ConvNd):
        groups, kernel = layer.groups, list(layer.kernel_size)
        n_out, n_in = layer.out_channels, layer.in_channels
    else:
        (n_out, n_in), kernel, groups = layer.weight.shape, [], 1
    places = math.prod(kernel) * (2 if layer.weight.is_complex() else 1)
    return n_in // groups * places, n_out // groups * places
