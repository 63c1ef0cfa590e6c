"""Initial weights: variances, the laws of numbers, unitary matrices."""

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hnetcl.algebra import ALGEBRAS
from hnetcl.errors import ArgumentError
from hnetcl.hnets.initial import initial_parameters
from hnetcl.layers import Conv1d, Conv2d, ConvTranspose2d, Linear, initialize
from hnetcl.layers.init import Parts

PARTS: tuple[Parts, ...] = ("independent", "polar", "unitary")
every_algebra = pytest.mark.parametrize("algebra", ALGEBRAS)
every_kind = pytest.mark.parametrize("parts", PARTS)

LAYERS: dict[str, tuple[Callable[..., Any], int, int]] = {  # with the real fans of 1
    "linear": (partial(Linear, 512, 1024), 512, 1024),
    "conv": (partial(Conv2d, 128, 256, (3, 5)), 128 * 15, 256 * 15),
    "groups": (partial(Conv1d, 512, 1024, 3, groups=4), 128 * 3, 256 * 3),
    "transposed": (partial(ConvTranspose2d, 128, 256, (3, 5), stride=2), 128 * 15, 256 * 15),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("algebra", "parts"), [*product(ALGEBRAS, PARTS[:2]), ("complex", "unitary")])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("criterion", "fan"), [("he", None), ("he", "in"), ("he", "out"), ("glorot", None)])
def test_every_component_has_the_variance(algebra: str, parts: Any, name: str, criterion: Any, fan: Any) -> None:
    """2 / fan in real channels, the same for all components: in numbers E |w|^2 = 2 / n, as the papers want it."""
    make, fan_in, fan_out = LAYERS[name]
    layer = make(algebra=algebra)
    nn.init.ones_(layer.bias)
    initialize(layer, criterion=criterion, fan=fan, parts=parts)
    wanted = {"he": 2 / (fan_out if fan == "out" else fan_in), "glorot": 2 / (fan_in + fan_out)}[criterion]
    found = layer.weight.detach().flatten(1).var(1)
    few = 2 * math.sqrt(2 / layer.weight[0].numel()) * 2  # four standard deviations of what is found
    torch.testing.assert_close(found, torch.full_like(found, wanted), rtol=max(0.02, few), atol=0)
    assert not layer.bias.any()


@every_algebra
def test_components_are_isotropic(algebra: str) -> None:
    """Within 2 %, uncorrelated, and of a polar draw the law is that of independent Gaussian components: fourth moments too."""
    layer, d = Linear(512 * ALGEBRAS[algebra].dim, 512 * ALGEBRAS[algebra].dim, algebra), ALGEBRAS[algebra].dim
    for parts in PARTS[:2]:
        initialize(layer, parts=parts)
        w = layer.weight.detach().flatten(1).double() * math.sqrt(d * 512 / 2)
        torch.testing.assert_close(w @ w.T / w.shape[1], torch.eye(d, dtype=torch.float64), rtol=0.02, atol=0.02)
        fourth = (w.square() @ w.square().T) / w.shape[1]
        torch.testing.assert_close(fourth, 1 + 2 * torch.eye(d, dtype=torch.float64), rtol=0.03, atol=0.03)


def test_the_modulus_has_its_distribution() -> None:
    """Rayleigh for complex numbers, chi with four degrees of freedom for quaternions: their distribution functions."""
    for algebra, law in (
        ("complex", lambda r2: 1 - torch.exp(-r2 / 2)),
        ("quaternion", lambda r2: 1 - torch.exp(-r2 / 2) * (1 + r2 / 2)),
    ):
        d = ALGEBRAS[algebra].dim
        layer = Linear(256 * d, 256 * d, algebra)
        initialize(layer, parts="polar")
        square = layer.weight.detach().square().sum(0).flatten().sort()[0] * (256 * d / 2)
        steps = (torch.arange(len(square)) + 0.5) / len(square)
        assert (law(square) - steps).abs().max() < 0.007  # Kolmogorov and Smirnov's bound is 0.0064 for 1 in 100


def test_the_draw_of_layers_is_the_default() -> None:
    """Bit for bit, so `initialize` at its defaults changes nothing about a network but its seed."""
    made = nn.Sequential(Conv2d(4, 8, 3, "quaternion"), nn.ReLU(), nn.Flatten(), Linear(8, 6, "complex"), nn.Linear(6, 2))
    before = {name: p.clone() for name, p in made.named_parameters()}
    torch.manual_seed(0)
    initialize(made)
    assert all(torch.equal(before[name], p) for name, p in made.named_parameters())


@every_algebra
@pytest.mark.parametrize("name", ["tall", "wide", "groups", "transposed"])
def test_unitary_matrices(algebra: str, name: str) -> None:
    """The real matrix of every group has orthogonal rows or columns of one length."""
    makes: dict[str, Callable[..., Any]] = {
        "tall": partial(Linear, 16, 40),
        "wide": partial(Conv2d, 16, 8, 3),
        "groups": partial(Conv2d, 16, 24, 3, groups=2),
        "transposed": partial(ConvTranspose2d, 16, 24, 3),
    }
    layer = makes[name](algebra=algebra)
    initialize(layer, parts="unitary")
    weight = layer.algebra.block_matrix(layer.weight) if name == "tall" else layer.real_weight()
    for matrix in weight.detach().flatten(1).chunk(getattr(layer, "groups", 1)):
        product = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
        length = product[0, 0].item()
        torch.testing.assert_close(product, length * torch.eye(len(product)), atol=1e-5, rtol=1e-5)
        assert matrix.square().mean().item() == pytest.approx(2 / layer.fans()[0], rel=1e-4)


@every_algebra
@every_kind
def test_the_scale_of_activations_stays(algebra: str, parts: Any) -> None:
    """Through ten layers with ReLUs the mean square stays within a factor: a square root left out would lose many orders."""
    net = nn.Sequential(*(layer for _ in range(10) for layer in (Linear(256, 256, algebra), nn.ReLU())))
    initialize(net, parts=parts)
    x = torch.randn(200, 256)
    assert 0.3 < net[:-1](x).square().mean() / (2 * x.square().mean()) < 3


def test_weights_that_are_computed_stay() -> None:
    computed: Any = nn.utils.parametrizations.weight_norm(Linear(8, 8, "complex"))
    before: Tensor = computed.weight.detach().clone()
    initialize(computed)
    assert torch.equal(computed.weight, before)


@pytest.mark.parametrize(("algebra", "init"), list(product(ALGEBRAS, ["fan_in", "fan_out"])))
@pytest.mark.parametrize("name", LAYERS)
def test_hypernetworks_know_the_fans(name: str, algebra: str, init: str) -> None:
    """`init=fan_in` and `fan_out` draw with the same variances."""
    make, fan_in, fan_out = LAYERS[name]
    drawn = initial_parameters(make(algebra=algebra), init)["weight"].var().item()
    assert drawn == pytest.approx(2 / (fan_in if init == "fan_in" else fan_out), rel=0.02)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"criterion": "xavier"}, "criterion=xavier: allowed: glorot, he"),
        ({"fan": "both"}, "fan=both: allowed: in, out"),
        ({"parts": "unit"}, "parts=unit: did you mean unitary"),
        ({"criterion": "glorot", "fan": "in"}, "fan=in: is an option of criterion=he: glorot has both"),
    ],
    ids=str,
)
def test_refused_in_one_line(options: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=rf"\A{text}"):
        initialize(nn.Linear(2, 2), **options)
