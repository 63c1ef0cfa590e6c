"""A generator of one's own: a module with `forward` and `embedding_dim` is all that is needed."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Annotated, Any

import pytest
import torch
import torch.nn.functional as F
from annotated_types import Ge
from safetensors.torch import load, save
from torch import Tensor, nn

import hnetcl
from hnetcl import registry
from hnetcl.bn import BatchNormLayer
from hnetcl.errors import ArgumentError
from hnetcl.hnets import BaseHyperNetwork, Generator, HyperNetwork, initial_parameters
from hnetcl.methods.output_regularizer import OutputRegularizer
from hnetcl.model import HyperModel

Shapes = Mapping[str, Sequence[int]]


class LinearMap(nn.Module):
    """Plain: raw outputs [B, P]."""

    def __init__(self, shapes: Shapes, num_tasks: int, *, embedding_dim: int = 12) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.linear = nn.Linear(embedding_dim, sum(map(prod, shapes.values())))

    def forward(self, embeddings: Tensor) -> Tensor:
        raw: Tensor = self.linear(embeddings)
        return raw


class Table(nn.Module):
    """Plain: a list of tensors that lie in the memory of a parameter, which must not be overwritten."""

    def __init__(self, shapes: Shapes, num_tasks: int, *, embedding_dim: int = 12) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.values = nn.ParameterList(0.1 * torch.randn(prod(shape)) for shape in shapes.values())

    def forward(self, embeddings: Tensor) -> list[Tensor]:
        return [value.expand(len(embeddings), -1) for value in self.values]


class Cosines(Generator):
    """By the base class, with an order of its own."""

    def __init__(self, shapes: Shapes, num_tasks: int, *, embedding_dim: Annotated[int, Ge(1)] = 12) -> None:
        super().__init__(dict(reversed(list(shapes.items()))), embedding_dim)
        self.linear = nn.Linear(embedding_dim, sum(self.sizes))

    def forward(self, embeddings: Tensor) -> Tensor:
        raw: Tensor = self.linear(embeddings).cos()
        return raw


MAKERS: dict[str, Callable[..., nn.Module]] = {"plain": LinearMap, "list": Table, "base class": Cosines}
maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 30), BatchNormLayer(30), nn.ReLU(), nn.Linear(30, 3))


def train(model: HyperModel, method: OutputRegularizer, task: int, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Steps on the task, with the penalty that holds the old ones."""
    x, y = torch.randn(20, 6) + task, torch.arange(20) % 3
    method.hold(model.hnet, task, optimizer, torch.Generator().manual_seed(0))
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(x, task), y).backward()
        penalty = method.penalty(model.hnet)
        if penalty is not None:
            penalty.backward()
        optimizer.step()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@maker
@torch.no_grad()
def test_what_is_generated_has_the_variance_of_the_networks_draw(make: Callable[..., nn.Module]) -> None:
    """For every parameter, over tasks that are known from the start and new ones, and whatever the generator yields."""
    start = initial_parameters(nn.Sequential(nn.Linear(40, 50), BatchNormLayer(50), nn.Linear(50, 20)))
    random = ["0.weight", "2.weight", "0.bias", "2.bias"]
    found = torch.zeros(2, len(random))
    for seed in range(10):
        torch.manual_seed(seed)
        hnet = HyperNetwork({name: value.shape for name, value in start.items()}, 3, make, start)
        for _ in range(3):
            hnet.add_task()
        for task in range(6):
            params = hnet(task)
            found[task // 3] += torch.stack([params[name].square().mean() for name in random]) / 30
            assert all(torch.equal(params[name], start[name]) for name in start.keys() - set(random))
    wanted = torch.stack([start[name].square().mean() for name in random])
    torch.testing.assert_close(found, wanted.expand(2, -1), rtol=0.2, atol=0)


@maker
def test_it_trains_grows_and_is_reloaded(make: Callable[..., nn.Module]) -> None:
    """Under the output regularizer; a task opened later, saved tensors and a copy included."""
    model, method = hnetcl.wrap(small_net(), 2, hnet=make), OutputRegularizer(beta=1.0)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
    train(model, method, 0, optimizer, 4)
    before = model.hnet.flat(torch.arange(2)).detach()
    model.add_task(optimizer)
    assert torch.equal(model.hnet.flat(torch.arange(2)), before)
    train(model, method, 2, optimizer, 4)
    after = model.hnet.flat(torch.arange(3))
    penalty = method.penalty(model.hnet)
    assert penalty is not None
    torch.testing.assert_close(penalty, (after[:2] - before).square().sum() / 2)
    assert float(penalty.detach()) > 0
    other = hnetcl.wrap(small_net(), 3, hnet=make)
    other.load_tensors(load(save({name: value.contiguous() for name, value in model.saved_tensors().items()})))
    x = torch.randn(5, 6)
    assert torch.equal(other.eval().all_tasks(x), model.eval().all_tasks(x))


@maker
def test_without_a_graph_the_same_is_generated(make: Callable[..., nn.Module]) -> None:
    """Twice the same: nothing of the generator was overwritten."""
    hnet = HyperNetwork({"weight": (4, 3), "bias": (4,)}, 2, make)
    expected = hnet.flat(torch.arange(2)).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for _ in range(2):
                torch.testing.assert_close(hnet.flat(torch.arange(2)), expected)


@pytest.mark.parametrize("name", ["full", "chunked", "structured", "low_rank"])
def test_what_our_generators_say_of_themselves_is_what_forward_alone_tells(name: str) -> None:
    """Mean squares, and squared distances with their gradients, in double precision."""
    shapes = {"a": (40, 30), "a.bias": (40,), "b": (3, 40), "b.bias": (3,)}
    hnet = HyperNetwork(shapes, 6, name, hidden=[8]).double()
    generator, embeddings = hnet.generator, torch.randn(5, 32, dtype=torch.float64)
    torch.testing.assert_close(generator.mean_squares(embeddings), Generator.mean_squares(generator, embeddings))
    tasks = torch.arange(5)
    records = [hnet.record(tasks, 1000), BaseHyperNetwork.record(hnet, tasks, 1000)]
    with torch.no_grad():
        for p in hnet.parameters():
            p.add_(0.1 * torch.randn_like(p))
    found = [hnet.squared_distance(tasks, record) for record in records]
    torch.testing.assert_close(*found)
    gradients = [torch.autograd.grad(each.sum(), list(hnet.parameters())) for each in found]
    torch.testing.assert_close(*gradients)


def test_a_registered_name_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its signature says which options there are, and what they may be."""
    monkeypatch.setitem(registry._registered["hnet"], "cosines", None)  # so that the name is forgotten afterwards
    hnetcl.register("hnet", "cosines")(Cosines)
    assert "cosines" in registry.names("hnet")
    model = hnetcl.wrap(small_net(), 2, hnet="cosines", embedding_dim=5)
    assert isinstance(model.hnet, HyperNetwork)
    assert model.hnet.embedding.shape == (2, 5)
    with pytest.raises(ArgumentError, match="embedding_dim=0: must be at least 1"):
        hnetcl.wrap(small_net(), 2, hnet="cosines", embedding_dim=0)
    with pytest.raises(ArgumentError, match="embeding_dim=4: there is no such key; did you mean embedding_dim"):
        hnetcl.wrap(small_net(), 2, hnet="cosines", embeding_dim=4)
    with pytest.raises(ArgumentError, match="hnet=cosinus: did you mean cosines"):
        hnetcl.wrap(small_net(), 2, hnet="cosinus")


REFUSED: dict[str, tuple[Any, str]] = {
    "no width": (lambda shapes, num_tasks: nn.Linear(3, 16), "generator=Linear: must have the width .* embedding_dim"),
    "no module": (lambda shapes, num_tasks: 3, "makes a int; must make a module"),
    "a hypernetwork": ("direct", "generator=direct: makes a DirectHyperNetwork; must make a module"),
    "too few": (
        lambda shapes, num_tasks: LinearMap({"a": (5,)}, 2),
        r"generator=LinearMap: yields \[B, 5\]; must yield \[B, 16\]",
    ),
    "other sizes": (
        lambda shapes, num_tasks: Table({"a": (12,), "b": (3,)}, 2),
        r"generator=Table: yields \[B, 12\], \[B, 3\]; must yield \[B, 16\], or \[B, n\] with n = 12, 4",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_generator_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        HyperNetwork({"weight": (4, 3), "bias": (4,)}, 2, make)
    assert "\n" not in str(caught.value)
