"""`fold_batchnorm`: the same output from fewer layers, or a layer left alone."""

from collections.abc import Callable
from copy import deepcopy
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import prune

from hnetcl.algebra import ALGEBRAS
from hnetcl.bn import (
    BATCH,
    BatchNormLayer,
    VirtualBatchNormLayer,
    convert_batchnorm,
    fold_batchnorm,
    norm_layers,
    reference_pass,
    using_task,
)
from hnetcl.kernels.whitening import WHITENINGS
from hnetcl.layers import Conv2d, Linear
from hnetcl.nets import MLP, LeNet
from hnetcl.vision import import_torchvision

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
every_algebra = pytest.mark.parametrize("algebra", ALGEBRAS)
every_kind = pytest.mark.parametrize(("algebra", "whitening"), list(product(ALGEBRAS, WHITENINGS)))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def used(module: nn.Module, rows: int = 1) -> nn.Module:
    """The module in float64 and evaluation mode, its norm layers with random rows, Gamma and beta."""
    module.double().eval()
    for layer in norm_layers(module).values():
        while 0 < layer.num_stats < rows:
            layer.checkpoint_stats()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter) / 4)
            if "running_var" in layer.rows:
                layer.rows["running_mean"].normal_()
                var = layer.rows["running_var"].normal_()
                eye = torch.eye(var.shape[-1]).double() / 4
                var.copy_(var**2 + 0.25 if var.ndim == 2 else var @ var.mT + eye)
    return module


def norms(module: nn.Module) -> list[str]:
    return list(norm_layers(module))


def assert_same(folded: nn.Module, module: nn.Module, x: Tensor, row: int | str = 0) -> None:
    """Equal outputs in float64 and in float32; only the module needs a row any more."""
    for dtype, tolerance in TOLERANCE.items():
        plain, fast, x = deepcopy(module).to(dtype), deepcopy(folded).to(dtype), x.to(dtype)
        with using_task(plain, row):
            torch.testing.assert_close(fast(x), plain(x), atol=tolerance, rtol=tolerance)


Case = tuple[Callable[[bool], nn.Module], tuple[int, ...]]
REAL_LAYERS: dict[str, Case] = {
    "linear": (lambda bias: nn.Linear(6, 8, bias), (5, 6)),
    "conv1d": (lambda bias: nn.Conv1d(6, 8, 3, 2, 1, bias=bias), (3, 6, 7)),
    "conv2d": (lambda bias: nn.Conv2d(6, 8, (3, 2), padding=2, dilation=2, bias=bias, padding_mode="reflect"), (3, 6, 7, 6)),
    "conv3d": (lambda bias: nn.Conv3d(6, 8, 2, bias=bias), (2, 6, 4, 3, 3)),
    "transposed1d": (lambda bias: nn.ConvTranspose1d(6, 8, 3, bias=bias), (3, 6, 4)),
    "transposed2d": (lambda bias: nn.ConvTranspose2d(6, 8, 3, 2, 1, output_padding=1, bias=bias), (3, 6, 4, 4)),
    "transposed3d": (lambda bias: nn.ConvTranspose3d(6, 8, 2, dilation=2, bias=bias), (2, 6, 3, 3, 2)),
}
IN_GROUPS: dict[str, Case] = {
    "conv1d": (lambda bias: nn.Conv1d(6, 8, 3, groups=2, bias=bias), (3, 6, 7)),
    "conv2d": (lambda bias: nn.Conv2d(4, 8, 3, groups=4, bias=bias), (3, 4, 7, 7)),
    "conv3d": (lambda bias: nn.Conv3d(8, 8, 2, groups=8, bias=bias), (2, 8, 4, 3, 3)),
    "transposed1d": (lambda bias: nn.ConvTranspose1d(6, 8, 3, groups=2, bias=bias), (3, 6, 4)),
    "transposed2d": (lambda bias: nn.ConvTranspose2d(4, 8, 3, 2, groups=4, bias=bias), (3, 4, 4, 4)),
    "transposed3d": (lambda bias: nn.ConvTranspose3d(8, 8, 2, groups=8, bias=bias), (2, 8, 3, 3, 2)),
}
with_and_without_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


@every_kind
@with_and_without_bias
@pytest.mark.parametrize("name", REAL_LAYERS)
def test_torchs_layers(algebra: Any, whitening: Any, bias: bool, name: str) -> None:
    """Every kind of layer, with its options, takes in a batch norm of every algebra, with and without Gamma and beta."""
    make, shape = REAL_LAYERS[name]
    for affine in (True, False):
        net = used(nn.Sequential(make(bias), BatchNormLayer(8, algebra=algebra, whitening=whitening, affine=affine)))
        folded = fold_batchnorm(net)
        assert [type(layer) for layer in folded.children()] == [type(net[0]), nn.Identity]  # type: ignore[index]
        assert_same(folded, net, torch.randn(shape))


@every_kind
@with_and_without_bias
@pytest.mark.parametrize("of", ALGEBRAS)
def test_our_layers(algebra: Any, whitening: Any, bias: bool, of: str) -> None:
    """Layers of any algebra become torch's, whatever the algebra of the batch norm after them."""
    for layer, shape, real in (
        (Linear(4, 8, of, bias=bias), (5, 4), nn.Linear),
        (Conv2d(4, 8, 3, of, bias=bias, stride=2, padding=1), (3, 4, 6, 5), nn.Conv2d),
    ):
        net = used(nn.Sequential(layer, BatchNormLayer(8, algebra=algebra, whitening=whitening)))
        folded = fold_batchnorm(net)
        assert [type(layer) for layer in folded.children()] == [real, nn.Identity]
        assert_same(folded, net, torch.randn(shape))


@every_algebra
@with_and_without_bias
@pytest.mark.parametrize("name", IN_GROUPS)
def test_groups(algebra: Any, bias: bool, name: str) -> None:
    """A convolution with groups takes in a real batch norm; one that would mix its groups stays."""
    make, shape = IN_GROUPS[name]
    net = used(nn.Sequential(make(bias), BatchNormLayer(8, algebra=algebra)))
    folded = fold_batchnorm(net)
    assert norms(folded) == ([] if algebra == "real" else ["1"])
    assert_same(folded, net, torch.randn(shape))


@every_algebra
@pytest.mark.parametrize("affine", [True, False])
def test_frozen_layers(algebra: Any, affine: bool) -> None:
    """A frozen layer folds as Gamma x + beta, without eps, and needs no row."""
    net = used(nn.Sequential(nn.Conv2d(3, 8, 3), BatchNormLayer(8, algebra=algebra, stats="frozen", affine=affine, eps=0.1)))
    for row in (None, 5, BATCH):
        folded = fold_batchnorm(net, row)
        assert not norms(folded)
        assert_same(folded, net, torch.randn(2, 3, 5, 5))


@every_algebra
def test_rows(algebra: Any) -> None:
    """The row given, or else chosen by `using_task`, is folded; layers that stay use it, too."""
    net = used(
        nn.Sequential(Linear(8, 8), BatchNormLayer(8, algebra=algebra), nn.ReLU(), BatchNormLayer(8, algebra=algebra)), rows=3
    )
    x = torch.randn(5, 8)
    for row in (0, 2):
        for folded in (fold_batchnorm(net, row), fold_batchnorm(net, torch.tensor(row)), folded_within(net, row)):
            assert norms(folded) == ["3"]
            assert_same(folded, net, x, row=row)
    assert not fold_batchnorm(net[:2], 0)[0].weight.equal(fold_batchnorm(net[:2], 2)[0].weight)  # type: ignore[index]


def folded_within(net: nn.Module, row: int) -> nn.Module:
    with using_task(net, row):
        return fold_batchnorm(net)


@pytest.mark.parametrize(("row", "message"), [(None, "3 rows of statistics and none chosen"), (3, "stats_id=3: ")])
def test_rows_are_refused(row: int | None, message: str) -> None:
    """Several rows and none chosen, or an unknown one, is the error that the layer itself gives."""
    with pytest.raises(ValueError, match=message):
        fold_batchnorm(used(nn.Sequential(nn.Linear(4, 8), BatchNormLayer(8)), rows=3), row)


@every_algebra
def test_parameters_from_outside(algebra: Any) -> None:
    """With tensors that a hypernetwork wrote, the result is what `functional_call` with them gives."""
    net = used(
        LeNet(
            (1, 16, 16),
            3,
            channels=(8, 8),
            hidden=(8,),
            algebra=algebra,
            norm=lambda width: BatchNormLayer(width, algebra=algebra),
        ),
        rows=2,
    )
    params = {name: torch.randn_like(value) / 4 for name, value in net.named_parameters()}
    folded, x = fold_batchnorm(net, 1, params), torch.randn(3, 1, 16, 16).double()
    assert not norms(folded)
    with using_task(net, 1):
        torch.testing.assert_close(folded(x), functional_call(net, params, (x,)), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"0.wieght": torch.zeros(8, 4)}, r"params has '0.wieght', but Sequential has no such parameter"),
        ({"0.weight": torch.zeros(2, 8, 4)}, r"params\['0.weight'\] must have shape \(8, 4\), got \(2, 8, 4\)"),
    ],
)
def test_parameters_are_refused(params: dict[str, Tensor], message: str) -> None:
    """A name or a shape that the module does not have is an error that tells both."""
    with pytest.raises(ValueError, match=rf"\A{message}\Z"):
        fold_batchnorm(nn.Sequential(nn.Linear(4, 8), BatchNormLayer(8)), params=params)


@every_algebra
def test_our_networks(algebra: Any) -> None:
    """The networks of this package fold whole."""
    net = used(MLP((1, 4, 4), 3, hidden=(8, 16), algebra=algebra, norm=lambda width: BatchNormLayer(width, algebra=algebra)))
    folded = fold_batchnorm(net)
    assert not norms(folded)
    assert_same(folded, net, torch.randn(5, 1, 4, 4))


def test_a_residual_network_folds_whole() -> None:
    """torchvision's resnet18 keeps its output and has no batch norm any more."""
    net = used(convert_batchnorm(import_torchvision().models.resnet18(num_classes=7)))
    for layer in norm_layers(net).values():
        layer.rows["running_var"].add_(1)  # so that twenty layers don't blow the scale up
    folded = fold_batchnorm(net)
    assert len(norms(net)) == 20
    assert not norms(folded)
    assert_same(folded, net, torch.randn(2, 3, 32, 32))


def test_the_original_is_untouched() -> None:
    """The result is a copy in evaluation mode; the module keeps its layers, values and mode."""
    net = used(nn.Sequential(nn.Conv2d(3, 8, 3), BatchNormLayer(8, algebra="complex"))).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    kinds = [type(layer) for layer in net]  # type: ignore[attr-defined]
    folded = fold_batchnorm(net, params={"0.bias": torch.ones(8)})
    assert not any(layer.training for layer in folded.modules())
    assert all(layer.training for layer in net.modules())
    assert [type(layer) for layer in net] == kinds  # type: ignore[attr-defined]
    torch.testing.assert_close(dict(net.state_dict()), before, atol=0, rtol=0)
    for parameter in folded.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(dict(net.state_dict()), before, atol=0, rtol=0)


class Shared(nn.Module):
    """A layer whose output, or weight, or whole is used elsewhere, too."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.layer, self.norm = way, nn.Linear(8, 8), BatchNormLayer(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        ways = {
            "output": lambda: self.norm(y) + y,
            "weight": lambda: F.linear(self.norm(y), self.layer.weight),
            "norm": lambda: self.norm(y) + self.norm(x),
            "argument": lambda: self.norm(y, weight=x[0]),
            "layer": lambda: self.norm(self.layer(y)),
        }
        result: Tensor = ways[self.way]()
        return result


@pytest.mark.parametrize("way", ["output", "weight", "norm", "argument", "layer"])
def test_what_is_used_elsewhere_stays(way: str) -> None:
    """Only a layer and a batch norm that are used once, one for the other, are folded."""
    net = used(Shared(way))
    folded = fold_batchnorm(net)
    assert norms(folded) == ["norm"]
    assert_same(folded, net, torch.randn(5, 8))


def collected() -> VirtualBatchNormLayer:
    layer = VirtualBatchNormLayer(8).double()
    with reference_pass(layer):
        layer(torch.randn(5, 8).double())
    return layer


class Doubled(nn.Linear):
    """A subclass that does something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked() -> nn.Module:
    layer = nn.Linear(8, 8)
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    return layer


@pytest.mark.parametrize(
    ("before", "norm"),
    [
        (lambda: nn.Linear(8, 8), lambda: BatchNormLayer(8, stats="batch")),
        (lambda: nn.Linear(8, 8), collected),
        (lambda: Doubled(8, 8), lambda: BatchNormLayer(8)),
        (hooked, lambda: BatchNormLayer(8)),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), lambda: BatchNormLayer(8)),
        (lambda: nn.ReLU(), lambda: BatchNormLayer(8)),
    ],
    ids=["batch", "virtual", "subclass", "hook", "parametrization", "no layer"],
)
def test_what_can_not_be_folded_stays(before: Callable[[], nn.Module], norm: Callable[[], nn.Module]) -> None:
    """The batch's own statistics, virtual batch norm and layers that do anything more are left alone."""
    net = used(nn.Sequential(before(), norm()))
    folded = fold_batchnorm(net)
    assert norms(folded) == ["1"]
    assert_same(folded, net, torch.randn(5, 8))


def test_a_batch_in_place_of_a_row_stays() -> None:
    """With `BATCH` for a row the layer is left, and uses the batch's own statistics."""
    net = used(nn.Sequential(nn.Linear(4, 8), BatchNormLayer(8, algebra="complex")), rows=2)
    folded = fold_batchnorm(net, BATCH)
    assert norms(folded) == ["1"]
    assert_same(folded, net, torch.randn(9, 4), row=BATCH)


def test_a_linear_layer_before_a_norm_of_other_width_stays() -> None:
    """Where the linear layer's axis is not the norm's, they are not folded."""
    net = used(nn.Sequential(nn.Linear(4, 5), BatchNormLayer(8)))
    folded = fold_batchnorm(net)
    assert norms(folded) == ["1"]
    assert_same(folded, net, torch.randn(3, 8, 4))


class Branching(nn.Module):
    """A module whose path depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 8), BatchNormLayer(8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.layer(x)) if x.sum() > 0 else x
        return y


def test_modules_that_can_not_be_traced_are_refused() -> None:
    """What torch.fx can't trace is an error of one line that names the module and the cause."""
    with pytest.raises(ValueError, match=r"\Atorch.fx can't trace Branching, so it can't be folded: .*control flow.*\Z"):
        fold_batchnorm(Branching())


COMPUTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm by hooks": nn.utils.weight_norm,
    "spectral norm by hooks": nn.utils.spectral_norm,
    "weight norm": nn.utils.parametrizations.weight_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("computed", COMPUTED.values(), ids=COMPUTED.keys())
def test_layers_whose_weight_is_computed_stay(computed: Callable[[nn.Module], nn.Module], called: bool) -> None:
    """Others beside them are folded. What hooks keep in a layer after a forward, with its graph, is no obstacle."""
    net = nn.Sequential(computed(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6))
    x = torch.randn(4, 3, 6, 6)
    for _ in range(3 if called else 0):
        net(x)
    net = convert_batchnorm(net).eval()  # type: ignore[assignment]
    folded, expected = fold_batchnorm(net), net(x)
    torch.testing.assert_close(folded(x), expected, atol=1e-5, rtol=1e-5)
    assert norms(folded) == ["1"]
    with torch.no_grad():
        own = {name: value + torch.randn_like(value) / 9 for name, value in net.named_parameters() if name.startswith("0.")}
    torch.testing.assert_close(fold_batchnorm(net, params=own)(x), functional_call(net, own, x), atol=1e-5, rtol=1e-5)
    assert torch.equal(net(x), expected)


def test_complex_parameters_may_be_given_as_real_numbers() -> None:
    class Turn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn, self.fc, self.norm = nn.Parameter(torch.tensor(1 + 1j)), nn.Linear(3, 4), BatchNormLayer(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.fc((x * self.turn).abs()))  # type: ignore[no-any-return]

    net, x = Turn().eval(), torch.randn(5, 3)
    real, whole = (fold_batchnorm(net, params={"turn": value}) for value in (torch.tensor([0.0, 3.0]), torch.tensor(3j)))
    assert norms(real) == []
    assert torch.equal(real(x), whole(x))
    torch.testing.assert_close(real(x), functional_call(net, {"turn": torch.tensor(3j)}, x))
