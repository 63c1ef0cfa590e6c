"""A network under a hypernetwork."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hnetcl.algebra import ALGEBRAS
from hnetcl.bn import BATCH, BatchNormLayer, writable_parameters
from hnetcl.bn.statistics import STATS
from hnetcl.hnets import DirectHyperNetwork, HyperNetwork
from hnetcl.model import HyperModel
from hnetcl.nets import MLP, LeNet


def build(tasks: int = 3) -> HyperModel:
    torch.manual_seed(0)
    layers = OrderedDict(fc=nn.Linear(6, 8), norm=BatchNormLayer(8, algebra="quaternion"), head=nn.Linear(8, 3))
    net = nn.Sequential(layers)
    initial = {name: value.detach().clone() for name, value in net.named_parameters()}
    shapes = {name: value.shape for name, value in initial.items()}
    return HyperModel(net, HyperNetwork(shapes, tasks, "full", hidden=(5,), initial=initial))


def rows(model: HyperModel) -> Tensor:
    mean = model.net.get_submodule("norm").running_mean
    assert isinstance(mean, Tensor)
    return mean


def test_the_hypernetwork_is_all_that_learns() -> None:
    model = build()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"hnet"}
    model(torch.randn(16, 6), task=1).sum().backward()
    assert all(p.grad is not None for p in model.hnet.parameters())


def test_a_task_uses_its_own_weights_and_row() -> None:
    model, x = build(), torch.randn(16, 6)
    assert len(rows(model)) == 3
    model(x, task=1)
    moved = rows(model).abs().sum(1) > 0
    assert moved.tolist() == [False, True, False]
    model.eval()
    assert not torch.allclose(model(x, task=0), model(x, task=1))
    assert not torch.allclose(model(x, task=1), model(x, task=1, stats=0))
    assert not torch.allclose(model(x, task=1), model(x, task=1, stats=BATCH))


def test_equals_the_network_with_those_weights() -> None:
    model, x = build(), torch.randn(16, 6)
    model.eval()
    plain = nn.Sequential(
        OrderedDict(fc=nn.Linear(6, 8), norm=BatchNormLayer(8, algebra="quaternion"), head=nn.Linear(8, 3))
    ).eval()
    plain.load_state_dict(model.hnet(2), strict=False)
    torch.testing.assert_close(plain(x), model(x, task=2))


@pytest.mark.parametrize("algebra", ALGEBRAS)
@pytest.mark.parametrize("stats", STATS)
@pytest.mark.parametrize("kind", ["mlp", "lenet"])
def test_all_tasks_in_one_pass(algebra: Any, stats: Any, kind: str) -> None:
    """The logits of every task, and their gradients, are those of a loop over tasks."""
    torch.manual_seed(0)

    def norm(width: int) -> nn.Module:
        return BatchNormLayer(width, algebra=algebra, stats=stats)

    if kind == "mlp":
        net: nn.Module = MLP((1, 4, 4), 3, hidden=(8, 8), algebra=algebra, norm=norm)
    else:
        net = LeNet((1, 16, 16), 3, channels=(4, 8), hidden=(8,), algebra=algebra, norm=norm)
    initial = {name: value.detach().clone() for name, value in writable_parameters(net).items()}
    shapes = {name: value.shape for name, value in initial.items()}
    model, x = HyperModel(net, HyperNetwork(shapes, 3, "full", hidden=(5,), initial=initial)), torch.randn(10, *net_input(kind))
    for task in range(3):
        model(x + task, task)
    with pytest.raises(ValueError, match="for evaluation: call"):
        model.all_tasks(x)
    model.eval()
    logits, each = model.all_tasks(x), torch.stack([model(x, task) for task in range(3)])
    torch.testing.assert_close(logits, each, rtol=1e-3, atol=1e-4)
    form, leaves = torch.randn_like(each), [p for p in model.parameters() if p.requires_grad]
    got, expected = (torch.autograd.grad((y * form).sum(), leaves, allow_unused=True) for y in (logits, each))
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)


def net_input(kind: str) -> tuple[int, ...]:
    return (1, 4, 4) if kind == "mlp" else (1, 16, 16)


def test_evaluation_changes_nothing() -> None:
    model = build().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(16, 6), task=1, stats=BATCH)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_saved_tensors_bring_everything_back() -> None:
    model, x = build(), torch.randn(16, 6)
    model(x, task=1)
    tensors = {name: value.clone() for name, value in model.saved_tensors().items()}
    other = build()
    with torch.no_grad():
        for p in other.hnet.parameters():
            p.add_(1)
    other.load_tensors(tensors)
    for task in range(3):
        assert torch.equal(model.eval()(x, task), other.eval()(x, task))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("net.norm.running_mean"), "missing or unknown: net.norm.running_mean"),
        (lambda t: t.update(foo=torch.zeros(1)), "missing or unknown: foo"),
        (
            lambda t: t.update({"net.norm.running_var": t["net.norm.running_var"][:2]}),
            "net.norm.running_var has 2 rows of statistics, but there are 3 tasks",
        ),
        (lambda t: t.update({"hnet.gain": torch.zeros(2)}), r"hnet.gain has shape \(2,\), expected \(28,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    model = build()
    tensors = dict(model.saved_tensors())
    change(tensors)
    with pytest.raises(ValueError, match=message):
        model.load_tensors(tensors)


def test_the_hypernetwork_must_fit_the_network() -> None:
    with pytest.raises(ValueError, match="must write parameters of the network; it has none of these"):
        HyperModel(nn.Linear(3, 2), DirectHyperNetwork({"weight": (2, 4)}, 1, per_task=()))
