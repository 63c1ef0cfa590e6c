"""torch's batch-norm layers become ours."""

import pickle
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import update_bn

import hnetcl
from hnetcl.bn import BatchNormLayer, batchnorm_layers, convert_batchnorm, recalibrate, using_task
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


# ---------------------------------------------------------------------- layers that add something


class BNAct(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


class Scaled(nn.BatchNorm1d):
    """Changes what is normalized, and has a parameter, a buffer and a method of its own."""

    shift: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3)
        self.gain = nn.Parameter(torch.full((channels,), 1.5))
        self.register_buffer("shift", torch.arange(float(channels)))

    def before(self, x: Tensor) -> Tensor:
        shifted: Tensor = x * self.gain + self.shift
        return shifted

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.before(x)).tanh()


class Renamed(nn.BatchNorm2d):
    """No forward of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.3)
        self.label = "mine"


class SyncAct(nn.SyncBatchNorm):
    """As timm's `SyncBatchNormAct`."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.LeakyReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(super().forward(x))
        return y


class ByHand(nn.BatchNorm2d):
    """Computes with its own statistics in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        assert self.running_mean is not None
        return x - self.running_mean.reshape(-1, x.shape[1], 1, 1)[0]


class Square(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.square() + 0.5


def with_square_weight(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    parametrize.register_parametrization(layer, "weight", Square())
    return layer


KINDS: list[tuple[Callable[[int], nn.Module], int]] = [
    (BNAct, 4),
    (Scaled, 2),
    (Renamed, 4),
    (SyncAct, 4),
    (with_square_weight, 4),
]


@pytest.mark.parametrize(("kind", "axes"), KINDS)
def test_subclasses_keep_what_they_add(kind: Callable[[int], nn.Module], axes: int) -> None:
    """Outputs, gradients, statistics and names stay, over training and evaluation; copies, pickles and states serve as it."""
    torch.manual_seed(0)
    old = nn.Sequential(kind(6))
    x = torch.randn(9, 6, *[3] * (axes - 2))
    old(x + 1)
    net = convert_batchnorm(deepcopy(old))
    assert net.state_dict().keys() == old.state_dict().keys()
    assert isinstance(net[0], BatchNormLayer)  # type: ignore[index]
    assert isinstance(net[0], type(old[0]))  # type: ignore[index]
    two = deepcopy(net).eval()
    batchnorm_layers(two)["0"].checkpoint_stats()
    with using_task(two, 1):
        torch.testing.assert_close(two(x), deepcopy(old).eval()(x))
    for step in range(6):
        for each in (old, net):
            each.train(step % 2 == 0)
        torch.testing.assert_close(net(x * step), old(x * step))
        got, wanted = (torch.autograd.grad(m(x * step).square().sum(), list(m.parameters())) for m in (net, old))
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    again = deepcopy(net)
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again(x), net(x))
    if kind is not with_square_weight:  # which torch does not pickle
        torch.testing.assert_close(pickle.loads(pickle.dumps(net))(x), net(x))


def test_recalibration_sees_what_a_subclass_normalizes() -> None:
    layer = Scaled(3)
    net, x = convert_batchnorm(nn.Sequential(layer)), torch.randn(9, 3)
    recalibrate(net, [x])
    torch.testing.assert_close(batchnorm_layers(net)["0"].get_stats(0)[0], layer.before(x).mean(0).detach())


def pruned(channels: int) -> nn.Module:
    layer = nn.BatchNorm2d(channels)
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


def replaced(channels: int) -> nn.Module:
    layer = nn.BatchNorm2d(channels)
    layer.forward = lambda input: input  # type: ignore[method-assign]
    return layer


def clashing(channels: int) -> nn.Module:
    layer = nn.BatchNorm2d(channels)
    layer.rows = 3  # type: ignore[assignment]
    return layer


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ByHand, "can't be converted, for its output would change"),
        (pruned, "its weight is no parameter"),
        (replaced, "a method of this very layer was replaced"),
        (clashing, "it has a rows of its own"),
        (lambda channels: nn.LazyBatchNorm2d(), "must have seen its first batch"),
    ],
)
def test_what_would_be_lost_is_refused_by_name(kind: Callable[[int], nn.Module], message: str) -> None:
    with pytest.raises(ArgumentError, match=rf"\Aa\.1=\w+: .*{message}.*\Z"):
        convert_batchnorm(nn.ModuleDict({"a": nn.Sequential(nn.Identity(), kind(4))}))


def test_hooks_attributes_and_submodules_stay() -> None:
    layer, seen = nn.BatchNorm1d(3), []
    layer.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(type(module)))
    layer.note, layer.extra = "kept", nn.Linear(2, 2)  # type: ignore[assignment]
    x = torch.randn(5, 3)
    expected = layer.eval()(x)
    net = convert_batchnorm(nn.Sequential(layer))
    torch.testing.assert_close(net(x), expected)
    assert seen[-1] is BatchNormLayer
    handle.remove()
    net(x)
    assert len(seen) == 2
    assert net[0].note == "kept"  # type: ignore[index]
    assert "0.extra.weight" in net.state_dict()


@pytest.mark.parametrize("algebra", ["real", "complex"])
def test_no_bias_is_gained(algebra: str) -> None:
    """Nor a weight that was taken away."""
    bare, without = nn.BatchNorm1d(4, bias=False), nn.BatchNorm1d(4)
    without.weight = None  # type: ignore[assignment]
    net = convert_batchnorm(nn.Sequential(bare, without), algebra)
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "1.bias"]
    net(torch.randn(5, 4)).sum().backward()


def test_buffers_count_not_flags() -> None:
    """As in torch: a flag switched off stops the updates; without buffers the batch's statistics are used in evaluation."""
    still, none = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    still(torch.randn(9, 4) + 3)
    still.track_running_stats = False
    none.running_mean = none.running_var = none.num_batches_tracked = None
    for old in (still, none):
        new = convert_batchnorm(deepcopy(old))
        for training in (True, False, True, False):
            x = torch.randn(9, 4) * 2
            torch.testing.assert_close(new.train(training)(x), old.train(training)(x))


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv3_small_100", "regnety_002", "densenet121", "resnetv2_50"])
def test_timms_networks(name: str) -> None:
    """Unchanged in evaluation, with their names; two tasks have rows of their own."""
    import_torchvision()
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model(name, pretrained=False, num_classes=5).eval()
    for layer in net.modules():
        if isinstance(layer, _BatchNorm):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    names, x = set(net.state_dict()), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = net(x)
        convert_batchnorm(net)
        torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-5)
        for layer in batchnorm_layers(net).values():
            layer.checkpoint_stats()
        with using_task(net, 1):
            torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-5)
    assert set(net.state_dict()) == names


# ---------------------------------------------------------------------- given statistics


def pretrained() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 8), nn.BatchNorm1d(8))
    net.append(nn.Linear(8, 3))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(20):
        x = torch.randn(16, 2, 5, 5) * 2 + 1
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), torch.randint(3, (16,))).backward()
        optimizer.step()
    return net.eval()


@pytest.mark.parametrize("stats", ["tracked", "learnable", "distilled"])
def test_given_statistics_reach_every_row(stats: str) -> None:
    """Of a pretrained extractor in `wrap`: all tasks, also one that is opened after training, start at the module's output."""
    given = pretrained()
    model = hnetcl.wrap(deepcopy(given), 3, generate=["6.*"], shared="fixed", stats=stats, compression=None, hnet="full")
    x = torch.randn(4, 2, 5, 5)

    def check(task: int) -> None:
        expected = functional_call(given, model.hnet(task), (x,))
        torch.testing.assert_close(model.eval()(x, task), expected, rtol=1e-5, atol=1e-5)

    for task in range(3):
        check(task)
    model.train()(x + 9, 1)
    for task in (0, 2):
        check(task)
    deepcopy(model).add_task()
    model.add_task()
    check(3)


def test_generated_statistics_start_at_the_given_ones() -> None:
    given = pretrained()
    x = torch.randn(4, 2, 5, 5)
    torch.testing.assert_close(convert_batchnorm(deepcopy(given), stats="generated")(x), given(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_torchs_state_dict_loads_into_a_converted_network(rows: int) -> None:
    """[C] becomes every row; that of a converted network still brings its rows."""
    given = pretrained()
    net = convert_batchnorm(nn.Sequential(*[deepcopy(m) for m in given]))
    for layer in batchnorm_layers(net).values():
        layer.reset_running_stats()
        for _ in range(rows - 1):
            layer.checkpoint_stats()
    state = given.state_dict()
    net.load_state_dict(state)
    assert state["1.running_mean"].shape == (6,)
    x = torch.randn(4, 2, 5, 5)
    for layer in batchnorm_layers(net).values():
        assert layer.num_stats == rows
        layer.checkpoint_stats()
    for row in range(rows + 1):
        with using_task(net, row):
            torch.testing.assert_close(net.eval()(x), given(x))
    other = convert_batchnorm(deepcopy(given))
    other.load_state_dict(net.state_dict())
    assert {layer.num_stats for layer in batchnorm_layers(other).values()} == {rows + 1}
    plain = BatchNormLayer(6)
    plain.checkpoint_stats()
    torch.testing.assert_close(plain.get_stats(1), (torch.zeros(6), torch.ones(6)))


def test_a_bfloat16_network_keeps_float32_statistics() -> None:
    net = convert_batchnorm(pretrained().bfloat16())
    for layer in batchnorm_layers(net).values():
        layer.checkpoint_stats()
        assert {v.dtype for v in layer.rows.values()} == {torch.float32, torch.int64}
    with using_task(net, 1):
        assert net(torch.randn(4, 2, 5, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16


# ---------------------------------------------------------------------- torch's own code


def test_freezing_by_class_means_ours() -> None:
    """`m.eval()` for every batch norm keeps rows still while the rest trains; weight decay finds their parameters."""
    net = convert_batchnorm(pretrained()).train()
    found = [m for m in net.modules() if isinstance(m, _BatchNorm)]
    assert len(found) == 2
    for m in found:
        m.eval()
    before = [layer.get_stats(0)[0] for layer in batchnorm_layers(net).values()]
    net(torch.randn(4, 2, 5, 5))
    for old, layer in zip(before, batchnorm_layers(net).values(), strict=True):
        assert torch.equal(layer.get_stats(0)[0], old)


def test_update_bn_gives_what_it_gives_on_torchs_network() -> None:
    """Of the chosen row; with several rows and none chosen it is refused."""
    given = pretrained()
    net = convert_batchnorm(deepcopy(given))
    batches = [torch.randn(7, 2, 5, 5) + k for k in range(3)]
    for layer in batchnorm_layers(net).values():
        layer.checkpoint_stats()
    rows = [layer.get_stats(0) for layer in batchnorm_layers(net).values()]
    with pytest.raises(ValueError, match="2 rows of statistics and none chosen"):
        update_bn(batches, net)
    update_bn(batches, given)
    with using_task(net, 1):
        update_bn(batches, net)
    for (name, layer), before in zip(batchnorm_layers(net).items(), rows, strict=True):
        theirs = given.get_submodule(name)
        torch.testing.assert_close(layer.get_stats(1), (theirs.running_mean, theirs.running_var))
        assert layer.rows["num_batches_tracked"][1] == 3
        torch.testing.assert_close(layer.get_stats(0), before)
        assert layer.momentum == 0.1


def test_torchs_synchronised_conversion_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"module=BatchNormLayer: can't be converted by torch.* sync=True"):
        nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(BatchNormLayer(4)))
    assert not hasattr(BatchNormLayer(4), "qconfig")


def test_ours_are_not_converted_again() -> None:
    net = convert_batchnorm(nn.Sequential(BNAct(4), nn.BatchNorm2d(4), nn.InstanceNorm2d(4)))
    before = list(net.children())
    assert list(convert_batchnorm(net).children()) == before
    assert type(before[2]) is nn.InstanceNorm2d
