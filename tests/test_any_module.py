"""Modules that do more than compute: state of their own, caches, recomputation, recurrence, several inputs and outputs."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from hnetcl.bn import batchnorm_layers
from hnetcl.errors import ArgumentError
from hnetcl.hnets import DirectHyperNetwork, HyperNetwork
from hnetcl.methods import Inputs, Method
from hnetcl.methods.base import CLASSIFIER_WEIGHT
from hnetcl.model import HyperModel
from hnetcl.vision import import_torchvision
from hnetcl.wrapping import wrap


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def under(net: nn.Module, tasks: int = 3, **options: Any) -> HyperModel:
    return wrap(net, tasks, hnet="full", hidden=[4], embedding_dim=4, **options)


def separate(net: nn.Module, tasks: int = 3) -> tuple[HyperModel, list[nn.Module]]:
    """A model whose tasks start at the network's own values, and a copy of the network for each."""
    copies = [copy.deepcopy(net) for _ in range(tasks)]
    return wrap(net, tasks, hnet=DirectHyperNetwork, per_task=["*"]), copies


class Average(nn.Module):
    """Divides by a running average of the size of its input; counts; has a constant, and a second name for its average."""

    size: Tensor
    calls: Tensor
    constant: Tensor

    def __init__(self, rebinds: bool) -> None:
        super().__init__()
        self.rebinds = rebinds
        self.register_buffer("size", torch.ones(6))
        self.register_buffer("calls", torch.tensor(0), persistent=False)
        self.register_buffer("constant", torch.full((6,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            size = x.abs().mean(0)
            if self.rebinds:
                self.size = 0.5 * self.size + 0.5 * size
                self.calls = self.calls + 1
            else:
                self.size.lerp_(size.detach(), 0.5)
                self.calls.add_(1)
        return x * self.constant / self.size


class OldSpectral(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(torch.nn.utils.spectral_norm(nn.Linear(6, 6)), nn.Linear(6, 3))


STATEFUL: dict[str, Callable[[], nn.Module]] = {
    "spectral_norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 6)), nn.Linear(6, 3)),
    "old spectral_norm": OldSpectral,
    "in place": lambda: nn.Sequential(nn.Linear(6, 6), Average(False), nn.Linear(6, 3)),
    "bound again": lambda: nn.Sequential(nn.Linear(6, 6), Average(True), nn.Linear(6, 3)),
    "instance norm": lambda: nn.Sequential(
        nn.Linear(6, 6), nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.Linear(6, 3)
    ),
    "batch norm and spectral norm": lambda: nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(6, 6)), nn.BatchNorm1d(6), nn.Linear(6, 3)
    ),
}


@pytest.mark.parametrize("kind", STATEFUL)
def test_buffers_that_training_changes_are_a_tasks_own(kind: str) -> None:
    """A model whose tasks have all parameters for themselves computes what a network per task does, whatever its buffers do, in
    training and evaluation, in any order of tasks; and so does a reload."""
    model, nets = separate(STATEFUL[kind]())
    for task in (1, 0, 1, 1, 2, 0):
        x = torch.randn(5, 6) * (1 + task)
        torch.testing.assert_close(model.train()(x, task), nets[task].train()(x))
    x = torch.randn(5, 6)
    expected = torch.stack([net.eval()(x) for net in nets])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.testing.assert_close(torch.stack([model.eval()(x, task) for task in range(3)]), expected)
    torch.testing.assert_close(model.all_tasks(x), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for load in (
        lambda new: new.load_tensors({name: value.clone() for name, value in model.saved_tensors().items()}),
        lambda new: new.load_state_dict(model.state_dict()),
    ):
        new, _ = separate(STATEFUL[kind]())
        load(new)
        torch.testing.assert_close(new.eval().all_tasks(x), expected)
    for task in range(3):
        torch.testing.assert_close(model.plain(task).eval()(x), expected[task])
    model.add_task()
    torch.testing.assert_close(model.all_tasks(x)[:3], expected)


def test_twenty_forwards_of_one_task_leave_another_where_it_was() -> None:
    model, x = under(nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 6)), nn.Linear(6, 2)), 2), torch.randn(5, 6)
    model.train()(x, 0)
    before = model.eval()(x, 0)
    model.train()
    for _ in range(20):
        model(x, 1)
    torch.testing.assert_close(model.eval()(x, 0), before, rtol=0, atol=0)


def test_constants_are_shared() -> None:
    model = under(nn.Sequential(nn.Linear(6, 6), Average(False), nn.Linear(6, 3)))
    model(torch.randn(5, 6), 0)
    assert model.buffers_by_task.rows.keys() == {"1.size", "1.calls"}


def test_torchs_batch_norm_without_conversion_has_rows_too() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    shapes = {name: value.shape for name, value in net.named_parameters()}
    model = HyperModel(net, HyperNetwork(shapes, 2, "full", hidden=(4,)))
    model(torch.randn(8, 6), 1)
    assert model.buffers_by_task.rows["1.num_batches_tracked"].tolist() == [0, 1]
    assert model.buffers_by_task.rows["1.running_mean"][0].abs().sum() == 0


class Lazy(nn.Module):
    """Makes a buffer, or changes the shape of one, when it is trained."""

    def __init__(self, makes: bool) -> None:
        super().__init__()
        self.linear, self.makes = nn.Linear(6, 3), makes
        if not makes:
            self.register_buffer("seen", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.makes:
            self.register_buffer("seen", x.detach().mean(0))
        elif self.training:
            self.seen = x.detach().mean(0)
        y: Tensor = self.linear(x)
        return y


@pytest.mark.parametrize(("makes", "message"), [(True, "is made in the forward"), (False, "changes its shape in training")])
def test_buffers_that_cant_have_rows_are_refused_by_name(makes: bool, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^net=seen: this buffer {message}"):
        under(Lazy(makes))(torch.randn(5, 6), 0)


def test_state_that_is_no_tensor_is_refused_by_name() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

    with pytest.raises(ArgumentError, match=r"^net=1: keeps extra state"):
        under(nn.Sequential(nn.Linear(6, 6), Extra(6, 3)))


class TwoNames(nn.Module):
    """A module under two names, a weight that another module shares, and a buffer that both hold."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm1d(6)
        self.all = nn.Sequential(self.a, nn.Tanh(), self.norm, self.b, nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.all(self.a(x))
        return y


def test_a_module_under_two_names() -> None:
    """The same output at every call; nothing with a graph stays in the network; a task's own copies are tied as before."""
    model, x = under(TwoNames()), torch.randn(5, 6)
    model.train()(x, 0).sum().backward()
    model.eval()
    for _ in range(3):
        assert (model(x, 0) - model(x, 0)).abs().max() == 0
    other = copy.deepcopy(model)
    assert all(p.is_leaf for p in model.net.parameters())
    model.all_tasks(x)
    assert copy.deepcopy(model).state_dict().keys() == other.state_dict().keys()
    new = under(TwoNames())
    new.load_tensors({name: value.clone() for name, value in model.saved_tensors().items()})
    torch.testing.assert_close(new.eval().all_tasks(x), model.all_tasks(x))
    plain = model.plain(1)
    assert isinstance(plain, TwoNames)
    assert plain.a is plain.all[0]
    assert plain.b.weight is plain.a.weight
    assert [layer.num_stats for layer in batchnorm_layers(plain).values()] == [1]
    torch.testing.assert_close(plain(x), model(x, 1))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(
    "norm", [nn.Identity, lambda: nn.BatchNorm1d(6), lambda: parametrizations.spectral_norm(nn.Linear(6, 6))]
)
def test_recomputation_gives_the_gradients_of_the_net_without_it(reentrant: bool, norm: Callable[[], nn.Module]) -> None:
    """Two tasks in one loss, each with its weights, rows and buffers; statistics move once."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 6), norm(), nn.Tanh(), nn.Linear(6, 6))
            self.head, self.again = nn.Linear(6, 2), True

        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(self.body, x, use_reentrant=reentrant) if self.again else self.body(x)
            y: Tensor = self.head(x.relu())
            return y

    models = [under(Block())]
    models.append(copy.deepcopy(models[0]))
    models[1].net.again = False  # type: ignore[assignment]
    x = torch.randn(7, 6)
    gradients = []
    for model in models:
        for _ in range(2):
            model.zero_grad()
            (F.cross_entropy(model(x, 0), torch.arange(7) % 2) + F.cross_entropy(model(x, 2), torch.arange(7) % 2)).backward()
        gradients.append([p.grad for p in model.hnet.parameters()])
    assert all(g is not None for g in gradients[0])
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(*(model.state_dict() for model in models))


def test_recomputation_elsewhere_is_left_alone() -> None:
    """After a wrapped net has used it, torch's own checkpoint works as before."""
    test_recomputation_gives_the_gradients_of_the_net_without_it(True, nn.Identity)
    linear = nn.Linear(3, 3)
    forms: list[Callable[[Tensor], Tensor]] = [linear, *(partial(checkpoint, linear, use_reentrant=r) for r in (True, False))]
    gradients = []
    for form in forms:
        x = torch.ones(4, 3, requires_grad=True)
        form(x).square().sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


def test_torchvisions_memory_efficient_network() -> None:
    """Its recomputation, of torchvision's own making, gives the gradients of the plain form."""
    make = import_torchvision().models.DenseNet
    gradients = []
    for efficient in (True, False):
        torch.manual_seed(0)
        net = make(4, (2, 2), 8, num_classes=2, memory_efficient=efficient)
        model = wrap(net, 2, hidden=[4], chunk_size=5000)
        torch.manual_seed(1)
        model(torch.randn(2, 3, 32, 32), 1).square().sum().backward()
        gradients.append([p.grad for p in model.hnet.parameters()])
    torch.testing.assert_close(*gradients)


class Caching(nn.Module):
    """Keeps in evaluation what its weight gives: in a dict, in an attribute made late, in a list; and something to look at."""

    last: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.last = nn.Linear(6, 3), None
        self.cache: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.cache = {}
            weight = self.linear.weight.tanh()
        else:
            if x.shape not in self.cache:
                self.cache[x.shape] = self.linear.weight.tanh()
            if not hasattr(self, "bias"):
                self.bias = self.linear.bias.exp()
            weight = self.cache[x.shape] + self.bias[:, None]
        self.last = F.linear(x, weight)
        return self.last


def test_caches_of_one_task_are_not_anothers() -> None:
    model, x = under(Caching()), torch.randn(5, 6)
    with torch.no_grad():
        model.eval()
        expected = []
        for task in range(3):
            params = model.hnet(task)
            expected.append(F.linear(x, params["linear.weight"].tanh() + params["linear.bias"].exp()[:, None]))
        for task in (0, 1, 2, 1):
            torch.testing.assert_close(model(x, task), expected[task])
            torch.testing.assert_close(model.net.last, expected[task])  # what it kept can be looked at
        torch.testing.assert_close(model.all_tasks(x), torch.stack(expected))
        copy.deepcopy(model)
        model.net.last = mark = torch.ones(3)
        model(x, 0)
        model.caches.reset()
        assert model.net.last is mark  # what a user puts there in between is not taken away


def test_timms_attention_biases() -> None:
    import_torchvision()  # which timm imports
    timm = pytest.importorskip("timm")
    net = timm.create_model("levit_128s", num_classes=2, pretrained=False)
    model, x = wrap(net, 2, hidden=[4], chunk_size=50_000).eval(), torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        logits = [model(x, task) for task in (0, 1, 0)]
    torch.testing.assert_close(logits[0], logits[2], rtol=0, atol=0)
    plain = model.plain(1)
    torch.testing.assert_close(plain(x), logits[1])


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNN | nn.GRU | nn.LSTM]) -> None:
        super().__init__()
        self.rnn, self.head = kind(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0][:, -1])
        return y


class AlwaysDropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(F.dropout(x.flatten(1), 0.5, training=True))
        return y


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_networks(kind: type[nn.RNN | nn.GRU | nn.LSTM]) -> None:
    """Which vmap can't take: task after task, in training too; nothing of a graph stays behind."""
    model, x = under(Recurrent(kind)), torch.randn(4, 4, 3)
    F.cross_entropy(model(x, 1), torch.tensor([0, 1, 0, 1])).backward()
    assert all(p.grad is not None for p in model.hnet.parameters())
    copy.deepcopy(model.net)
    model.eval()
    torch.testing.assert_close(model.all_tasks(x), torch.stack([model(x, task) for task in range(3)]))
    torch.testing.assert_close(model.plain(2)(x), model(x, 2))


def test_dropout_that_is_never_off() -> None:
    model, x = under(AlwaysDropped()).eval(), torch.randn(4, 4, 3)
    assert model.all_tasks(x).shape == (3, 4, 2)
    assert not torch.equal(model(x, 0), model(x, 0))


def test_what_is_wrong_with_an_input_is_told_by_all_tasks_too() -> None:
    model = under(nn.Linear(6, 2)).eval()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model.all_tasks(torch.randn(3, 5))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 2), nn.Linear(4, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        y: Tensor = self.left(left) + self.right(right)
        return y


class Named(Pair):
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        return {"logits": super().forward(batch["left"], batch["right"]), "features": batch["left"]}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_several_inputs_and_outputs(precision: str) -> None:
    left, right = torch.randn(5, 6), torch.randn(5, 4)
    model = under(Pair(), precision=precision).eval()
    each = torch.stack([model((left, right), task) for task in range(3)])
    assert each.dtype == torch.float32
    torch.testing.assert_close(model.all_tasks((left, right)), each, rtol=0.02, atol=0.02)
    named = under(Named(), precision=precision).eval()
    outputs = named.all_tasks({"left": left, "right": right})
    assert {name: value.shape for name, value in outputs.items()} == {"logits": (3, 5, 2), "features": (3, 5, 6)}
    torch.testing.assert_close(outputs["logits"][1], named({"left": left, "right": right}, 1)["logits"], rtol=0.02, atol=0.02)


class Outputs(NamedTuple):
    logits: Tensor
    aux: Tensor | None


def test_auxiliary_classifiers_are_trained_with_a_share() -> None:
    logits, aux, y = torch.randn(5, 3), torch.randn(5, 3), torch.arange(5) % 3
    inputs = Inputs(torch.randn(5, 2), y, 0)
    expected = F.cross_entropy(logits, y) + CLASSIFIER_WEIGHT * F.cross_entropy(aux, y)
    for outputs in (Outputs(logits, aux), (logits, aux), {"logits": logits, "aux": aux}):
        losses = Method().task_loss(outputs, inputs)
        torch.testing.assert_close(losses.total, expected)
        assert losses.parts == {"loss": losses.total}
        assert losses.logits is logits
    assert Method().task_loss(Outputs(logits, None), inputs).total == F.cross_entropy(logits, y)
    for wrong in ((logits, torch.randn(5, 7)), "logits", {"scores": logits}):
        with pytest.raises(ArgumentError, match=r"^net="):
            Method().task_loss(wrong, inputs)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_torchvisions_networks_with_auxiliary_classifiers(name: str) -> None:
    """In training they return more than logits, and all that they have learns."""
    net = import_torchvision().models.get_model(name, num_classes=2, init_weights=False)
    model = wrap(net, 2, generate=["*fc*"], shared="fixed", hnet=DirectHyperNetwork, per_task=["*"])
    size = 299 if name == "inception_v3" else 64
    losses = Method().loss(model, Inputs(torch.randn(2, 3, size, size), torch.tensor([0, 1]), 1))
    losses.total.backward()
    assert losses.logits.shape == (2, 2)
    grad = model.hnet.get_parameter("own").grad
    assert grad is not None
    assert (grad[1] != 0).any()
    heads = [name for name in model.hnet.shapes if name.lower().startswith("aux")]
    assert heads


@pytest.mark.parametrize("kind", ["spectral_norm", "in place", "batch norm and spectral norm"])
def test_compiled_steps_find_buffers_first(kind: str) -> None:
    """Compiled by the user without a step before: refused in one line; after `find_buffers`: as uncompiled."""
    model, nets = separate(STATEFUL[kind]())
    step = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(5, 6)
    with pytest.raises(Exception, match="run the model once in training before it is compiled"):
        step(x, torch.tensor(0))
    torch._dynamo.reset()
    before = torch.get_rng_state()
    model.find_buffers(x, 0)
    assert torch.equal(before, torch.get_rng_state())
    for task in (1, 0, 1):
        torch.testing.assert_close(step(x + task, torch.tensor(task)), nets[task](x + task))
    model.eval()
    for task in range(3):
        torch.testing.assert_close(model(x, task), nets[task].eval()(x))
