"""Before training, whatever writes a network's parameters gives every layer the variance of the network's own draw."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from hnetcl.algebra import ALGEBRAS
from hnetcl.bn import BatchNormLayer
from hnetcl.errors import ArgumentError
from hnetcl.hnets import BaseHyperNetwork, DirectHyperNetwork, HyperNetwork, initial_parameters
from hnetcl.hnets.initial import INITS
from hnetcl.layers import Conv2d, Linear
from hnetcl.nets import MLP, LeNet
from hnetcl.vision import import_torchvision
from hnetcl.wrapping import wrap

SEEDS, OLD, NEW = 10, 3, 3
MEMBERS: dict[str, Callable[..., BaseHyperNetwork]] = {
    "full": partial(HyperNetwork, generator="full", hidden=(32, 4)),
    "chunked": partial(HyperNetwork, generator="chunked", hidden=(24, 24), chunk_size=5000),
    "structured": partial(HyperNetwork, generator="structured", hidden=(24, 24), chunk_size=5000),
    "low rank": partial(HyperNetwork, generator="low_rank", hidden=(24, 24), chunk_size=5000),
    "low rank, with a base": partial(HyperNetwork, generator="low_rank", hidden=(24, 24), base=True, chunk_size=5000),
    "direct": partial(DirectHyperNetwork, per_task=("*",)),
}
NETS: dict[str, Callable[[], nn.Module]] = {
    "MLP": partial(MLP, (1, 12, 12), 10, hidden=(40, 40)),
    "LeNet": partial(LeNet, (1, 28, 28), 10, channels=(8, 12), hidden=(60,)),
    "quaternion LeNet with norm layers": partial(
        LeNet,
        (1, 28, 28),
        10,
        partial(BatchNormLayer, algebra="quaternion"),
        channels=(8, 12),
        hidden=(60,),
        algebra="quaternion",
    ),
    "resnet18": lambda: import_torchvision().models.resnet18(num_classes=10),
}


@cache
def own_values(net: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return initial_parameters(NETS[net]())


def mean_squares(make: Callable[..., BaseHyperNetwork], start: dict[str, Tensor], seeds: int = SEEDS) -> tuple[Tensor, Tensor]:
    """Of every parameter over seeds and tasks, those from the start and those added: [P], [P]. Constants are checked here."""
    names = [name for name, value in start.items() if len(value.unique()) > 2]
    found = torch.zeros(OLD + NEW, len(names))
    for seed in range(seeds):
        torch.manual_seed(seed)
        hnet = make({name: value.shape for name, value in start.items()}, OLD, initial=start)
        for _ in range(NEW):
            hnet.add_task()
        for task in range(OLD + NEW):
            params = hnet(task)
            found[task] += torch.stack([params[name].square().mean() for name in names])
            assert all(torch.equal(params[name], start[name]) for name in start.keys() - set(names))
    found /= seeds
    return found[:OLD].mean(0), found[OLD:].mean(0)


@pytest.mark.parametrize("net", [pytest.param(n, marks=pytest.mark.slow) if n == "resnet18" else n for n in NETS])
@pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS.keys())
@torch.no_grad()
def test_what_is_written_has_the_variance_of_the_networks_draw(make: Callable[..., BaseHyperNetwork], net: str) -> None:
    """Within 20 %, for every layer, for the tasks that are known from the start and for new ones; constants exactly."""
    start = own_values(net)
    wanted = torch.stack([value.var() for value in start.values() if len(value.unique()) > 2])
    for found in mean_squares(make, start):
        ratios = found / wanted
        assert float(ratios.min()) >= 0.8
        assert float(ratios.max()) <= 1.2


@pytest.mark.parametrize("init", ["fan_in", "fan_out"])
@pytest.mark.parametrize("make", list(MEMBERS.values())[:4], ids=list(MEMBERS)[:4])
@torch.no_grad()
def test_hyperfan(make: Callable[..., BaseHyperNetwork], init: str) -> None:
    """Every layer starts with 2 / fan (Chang et al. 2020), its fan that of the real layer which computes the same."""
    torch.manual_seed(0)
    net = NETS["quaternion LeNet with norm layers"]()
    start = initial_parameters(net, init)
    wanted = [2 / fan(layer.as_real().weight, init) for layer in net.modules() if isinstance(layer, Linear | Conv2d)]
    for found in mean_squares(make, start):
        torch.testing.assert_close(found, torch.tensor(wanted), rtol=0.25, atol=0)  # of which the draw of the target has a part


def fan(weight: Tensor, init: str) -> int:
    return nn.init._calculate_fan_in_and_fan_out(weight)[init == "fan_out"]


@pytest.mark.parametrize("init", ["fan_in", "fan_out"])
def test_fans_are_those_of_torch(init: str) -> None:
    net = nn.Sequential(nn.Linear(90, 70), nn.Conv1d(40, 80, 3), nn.Conv2d(16, 40, 5, stride=2), nn.Conv3d(16, 24, (1, 2, 3)))
    values = initial_parameters(net, init)
    for i, layer in enumerate(net):
        weight = layer.get_parameter("weight")
        torch.testing.assert_close(values[f"{i}.weight"].var(), torch.tensor(2 / fan(weight, init)), rtol=0.15, atol=0)
        assert not values[f"{i}.bias"].any()


@pytest.mark.parametrize(("init", "expected"), [("fan_in", 2 / (5 * 9)), ("fan_out", 2 / (8 * 9))])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_fans_of_grouped_and_transposed_convolutions(
    kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], init: str, expected: float
) -> None:
    """Each output is connected to the inputs of its own group only, whichever axis of the weight these lie on."""
    values = initial_parameters(kind(40, 64, 3, groups=8), init)
    torch.testing.assert_close(values["weight"].var(), torch.tensor(expected), rtol=0.15, atol=0)


@pytest.mark.parametrize("algebra", ALGEBRAS)
def test_fan_in_is_how_our_layers_draw(algebra: str) -> None:
    layer = Linear(160, 120, algebra)
    torch.testing.assert_close(initial_parameters(layer, "fan_in")["weight"].var(), layer.weight.var(), rtol=0.15, atol=0)


def test_what_is_not_redrawn() -> None:
    """Norm layers, rows of statistics and the network itself stay; a tied weight is drawn once; unknown draws are refused."""
    one, two = nn.Linear(4, 4), nn.Linear(4, 4)
    two.weight = one.weight
    net = nn.Sequential(one, two, BatchNormLayer(4, stats="learnable"))
    before = one.weight.detach().clone()
    values = initial_parameters(net, "fan_out")
    assert set(values) == {"0.weight", "0.bias", "1.bias", "2.weight", "2.bias"}
    assert torch.equal(values["2.weight"], torch.ones(4))
    assert torch.equal(one.weight, before)
    assert torch.equal(initial_parameters(net)["0.weight"], before)
    with pytest.raises(ArgumentError, match="init=fanin: did you mean fan_in"):
        initial_parameters(net, "fanin")


COMPUTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": nn.utils.parametrizations.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "weight norm by hooks": nn.utils.weight_norm,
    "spectral norm by hooks": nn.utils.spectral_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("computed", COMPUTED.values(), ids=COMPUTED.keys())
def test_layers_whose_weight_is_computed_keep_their_draw(computed: Callable[[nn.Module], nn.Module], init: Any) -> None:
    """All of it; a plain layer beside it is drawn. The whole learns."""
    net = nn.Sequential(computed(nn.Linear(6, 8)), nn.Linear(8, 4))
    own = {name: value.detach().clone() for name, value in net.named_parameters()}
    values = initial_parameters(net, init)
    assert values.keys() == own.keys()
    for name, value in own.items():
        drawn = init in ("fan_in", "fan_out", "torch") and name.startswith("1.")
        assert torch.equal(values[name], value) != drawn
    model = wrap(net, 2, init=init, hidden=[8], chunk_size=30)
    model(torch.randn(5, 6), 1).sum().backward()
    assert all(p.grad is not None or not p.numel() for p in model.hnet.parameters())
