"""torch's batch-norm layers become ours."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from hnetcl.bn import BatchNormLayer, batchnorm_layers, convert_batchnorm, using_task
from hnetcl.errors import ArgumentError
from hnetcl.vision import import_torchvision


def trained(layer: nn.Module, *shape: int) -> nn.Module:
    """A module whose norm layers have no longer the statistics and parameters that they started with."""
    torch.manual_seed(0)
    for _ in range(3):
        layer(torch.randn(shape) * 2 + 1)
    with torch.no_grad():
        for norm in layer.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                for parameter in norm.parameters():
                    parameter.add_(torch.rand_like(parameter) / 2)
    return layer


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.BatchNorm1d(6), (9, 6)),
        (lambda: nn.BatchNorm1d(6, affine=False), (9, 6, 5)),
        (lambda: nn.BatchNorm2d(6, momentum=None, eps=1e-3), (9, 6, 5, 4)),
        (lambda: nn.BatchNorm3d(6, momentum=0.3).double(), (9, 6, 2, 3, 2)),
        (lambda: nn.BatchNorm2d(6, track_running_stats=False), (9, 6, 5, 4)),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_output_and_statistics_stay(make: Callable[[], nn.Module], shape: tuple[int, ...], training: bool) -> None:
    like = next(iter(make().state_dict().values()), torch.zeros(()))
    old = make() if like.dtype == torch.float64 else trained(make(), *shape)
    old.train(training)
    new = convert_batchnorm(nn.Sequential(old))
    x = torch.randn(shape, dtype=like.dtype if like.is_floating_point() else torch.float32)
    torch.testing.assert_close(new(x), old(x), rtol=1e-6, atol=1e-6)
    for name, value in old.state_dict().items():
        torch.testing.assert_close(new.state_dict()[f"0.{name}"].reshape(value.shape), value)
    assert new.get_submodule("0").training == training


def test_a_whole_network_keeps_its_output() -> None:
    net = import_torchvision().models.resnet18(num_classes=7)
    trained(net, 4, 3, 32, 32)
    x = torch.randn(4, 3, 32, 32)
    before = net.eval()(x)
    assert convert_batchnorm(net) is net
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert len(batchnorm_layers(net)) == 20
    torch.testing.assert_close(net(x), before, rtol=1e-6, atol=1e-6)


def test_two_tasks_train_without_touching_each_others_rows() -> None:
    net = convert_batchnorm(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    )
    layers = batchnorm_layers(net)
    for layer in layers.values():
        layer.checkpoint_stats()
    for task in (0, 1, 0):
        before = {name: layer.get_stats(1 - task) for name, layer in layers.items()}
        with using_task(net, task):
            net(torch.randn(8, 3, 9, 9) * (task + 1) + task)
        for name, layer in layers.items():
            torch.testing.assert_close(layer.get_stats(1 - task), before[name], rtol=0, atol=0)
            assert not torch.equal(layer.get_stats(task)[0], torch.zeros(4))


def test_two_tasks_train_a_whole_network() -> None:
    """torchvision's resnet18 learns two tasks by turns; a step changes the rows of its task in all layers, no other."""
    torch.manual_seed(0)
    net = convert_batchnorm(import_torchvision().models.resnet18(num_classes=2)).train()
    layers = batchnorm_layers(net)
    for layer in layers.values():
        layer.checkpoint_stats()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    for task in (0, 1, 0):
        before = {name: [layer.get_stats(row)[0] for row in (0, 1)] for name, layer in layers.items()}
        x, y = torch.randn(8, 3, 32, 32) * (task + 1) + task, torch.arange(8) % 2
        with using_task(net, task):
            loss = torch.nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, layer in layers.items():
            assert torch.equal(layer.get_stats(1 - task)[0], before[name][1 - task])
            assert not torch.equal(layer.get_stats(task)[0], before[name][task])


def test_a_layer_that_occurs_twice_still_does() -> None:
    norm = nn.BatchNorm1d(4)
    net = convert_batchnorm(nn.Sequential(norm, nn.Linear(4, 4), norm))
    assert net.get_submodule("0") is net.get_submodule("2")


def test_a_layer_itself_and_what_it_was_told() -> None:
    old = nn.BatchNorm1d(8, eps=1e-2, momentum=0.4).double().eval()
    old.weight.requires_grad_(False)
    new = convert_batchnorm(old)
    assert isinstance(new, BatchNormLayer)
    assert (new.eps, new.momentum, new.training) == (1e-2, 0.4, False)
    assert new.weight is not None
    assert new.bias is not None
    assert (new.weight.dtype, new.weight.requires_grad, new.bias.requires_grad) == (torch.float64, False, True)
    other = convert_batchnorm(old, "quaternion", eps=1e-4, stats="frozen")
    assert isinstance(other, BatchNormLayer)
    assert (other.eps, other.momentum, other.stats, other.num_numbers) == (1e-4, 0.4, "frozen", 2)


def test_channels_must_fit_the_algebra() -> None:
    with pytest.raises(ArgumentError, match="num_features=6: must be a positive multiple of 4"):
        convert_batchnorm(nn.Sequential(nn.BatchNorm1d(6)), "quaternion")


def test_synchronised_layers_stay_so() -> None:
    """With their group of ranks; other layers get neither."""
    group = object()
    sync, plain = nn.SyncBatchNorm(4, process_group=group), nn.BatchNorm1d(4)
    net = convert_batchnorm(nn.Sequential(sync, plain))
    layers = batchnorm_layers(net)
    assert (layers["0"].sync, layers["0"].process_group) == (True, group)
    assert (layers["1"].sync, layers["1"].process_group) == (False, None)
