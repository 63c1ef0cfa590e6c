"""The auxiliary loss: it counts once, whatever the training loop does, and it is never forgotten in silence."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from steps import run_of, take
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import hnetcl
from hnetcl import BatchNormLayer, auxiliary_loss, registry
from hnetcl.bn.gaussian import divergence
from hnetcl.bn.statistics import MODES
from hnetcl.errors import ArgumentError
from hnetcl.methods.finetune import Finetune
from hnetcl.model import HyperModel
from hnetcl.training import TrainingStep

with_a_loss = pytest.mark.parametrize("stats", [name for name, mode in MODES.items() if mode.has_auxiliary_loss])
without_one = pytest.mark.parametrize("stats", [name for name, mode in MODES.items() if not mode.has_auxiliary_loss])
pytestmark = [  # raised inside torch's compiler
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
assert_close = torch.testing.assert_close
assert_equal = partial(torch.testing.assert_close, atol=0, rtol=0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Block(nn.Module):
    """Linear and batch norm, on demand twice, or computed again in backward."""

    def __init__(self, stats: Any, *, times: int = 1, again: bool = False, reentrant: bool = False, **options: Any) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(6, 8), BatchNormLayer(8, algebra="complex", stats=stats, **options)
        self.head, self.times, self.again, self.reentrant = nn.Linear(8, 3), times, again, reentrant

    def hidden(self, x: Tensor) -> Tensor:
        x = self.body(x)
        for _ in range(self.times):
            x = self.norm(x).tanh()
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.hidden, x, use_reentrant=self.reentrant) if self.again else self.hidden(x)
        y: Tensor = self.head(x)
        return y


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(12, 6) + 1, torch.arange(12) % 3


def entropy(net: Callable[..., Tensor]) -> Tensor:
    x, y = batch()
    return F.cross_entropy(net(x), y)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def under(stats: str, **options: Any) -> HyperModel:
    """A block under a hypernetwork, for two tasks, all of it written; with the same options the same."""
    torch.manual_seed(0)
    return hnetcl.wrap(Block(stats, **options), 2, stats=stats, hnet="full", hidden=[4], compression=None)


# ---------------------------------------------------------------------- what it is


@without_one
def test_it_is_zero_without_graph_where_no_layer_has_one(stats: Any) -> None:
    for net in (BatchNormLayer(8, stats=stats), nn.Sequential(nn.Linear(8, 8), BatchNormLayer(8, stats=stats)), nn.ReLU()):
        net(torch.randn(9, 8))
        loss = auxiliary_loss(net)
        assert (loss.item(), loss.shape, loss.requires_grad) == (0.0, (), False)
    assert auxiliary_loss(BatchNormLayer(8, stats=stats).to("meta")).device.type == "meta"


@with_a_loss
def test_it_is_the_divergence_of_all_layers(stats: Any) -> None:
    """Weighted, summed over layers and over the forwards of each since it was taken last; evaluation and no_grad add none."""
    net = nn.Sequential(*[BatchNormLayer(8, stats=stats, momentum=1.0, auxiliary_weight=w) for w in (2.0, 3.0)]).double()
    x = torch.randn(9, 8, dtype=torch.float64) + 2
    with torch.no_grad():
        net(x)
    net.eval()(x)
    net.train()(x)
    once = auxiliary_loss(net)
    assert once.shape == ()
    expected: Any = 0
    layer: Any
    for weight, layer, seen in zip((2, 3), net, (x, BatchNormLayer(8).double()(x)), strict=True):
        taught = (layer.location, layer.factor) if stats == "distilled" else (layer.running_location, layer.running_factor)
        expected = expected + weight * divergence(seen.mean(0), seen.var(0).reshape(-1, 1, 1), *taught)
    assert_close(once, expected)
    assert not auxiliary_loss(net)
    net(x)
    net(x)
    assert_close(auxiliary_loss(net), 2 * once)


@with_a_loss
def test_no_loss_where_nothing_learns(stats: Any) -> None:
    layer = BatchNormLayer(8, stats=stats).requires_grad_(False)
    layer(torch.randn(9, 8))
    assert not auxiliary_loss(layer).requires_grad
    assert layer.pending_losses.total is None


def test_every_mode_is_in_the_constructors_annotation() -> None:
    """And the constructor's arguments are the configuration of the part."""
    options = registry.options("bn", "layer")
    assert get_args(options["stats"].type) == tuple(MODES) == tuple(mode.name for mode in MODES.values())
    assert registry.find("bn", "layer") is BatchNormLayer
    assert registry.find("bn", "virtual") is hnetcl.VirtualBatchNormLayer
    values = {"algebra": "complex", "auxiliary_weight": 3.0}
    assert BatchNormLayer(8, **registry.checked(values, options)).auxiliary_weight == 3.0


# ---------------------------------------------------------------------- training loops


@with_a_loss
def test_it_is_right_under_a_scaler(stats: str) -> None:
    """Whatever the scale: unscaled gradients are those of plain training."""
    net, found = Block(stats), []
    for scale in (None, 2.0**16):
        own = copy.deepcopy(net)
        torch.manual_seed(1)
        loss = entropy(own) + auxiliary_loss(own)
        optimizer = torch.optim.SGD(own.parameters(), 0.0)
        if scale is None:
            loss.backward()
        else:
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
        found.append(gradients(own))
    assert len(found[0]) == len(list(net.parameters()))
    assert_close(*found)


@with_a_loss
@pytest.mark.parametrize("hyper", [False, True])
def test_it_is_right_where_gradients_accumulate(stats: str, hyper: bool) -> None:
    """Three small steps of a third each leave the gradients of one step with the mean of the three losses."""
    net: nn.Module = under(stats) if hyper else Block(stats)
    other = copy.deepcopy(net)
    task = (0,) if hyper else ()
    batches = [batch() for _ in range(3)]
    for x, y in batches:
        ((F.cross_entropy(net(x, *task), y) + auxiliary_loss(net)) / 3).backward()
    losses = [F.cross_entropy(other(x, *task), y) for x, y in batches]
    ((sum(losses, torch.zeros(())) + auxiliary_loss(other)) / 3).backward()
    assert gradients(net).keys() == gradients(other).keys()
    assert_close(gradients(net), gradients(other))


@with_a_loss
def test_a_layer_that_runs_twice_has_two_losses(stats: str) -> None:
    """Their sum is that of two forwards, one after the other."""
    twice, one = Block(stats, times=2), Block(stats)
    one.load_state_dict(twice.state_dict())
    x = torch.randn(12, 6)
    twice(x)
    hidden = one.hidden(x)
    first = auxiliary_loss(one)
    one.norm(hidden)
    assert_close(auxiliary_loss(twice), first + auxiliary_loss(one))


@with_a_loss
def test_copies_and_pickles_have_nothing_pending(stats: str) -> None:
    net = Block(stats)
    net(batch()[0])
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert not auxiliary_loss(other).requires_grad
    assert auxiliary_loss(net).requires_grad
    model = under(stats)
    model(batch()[0], 0)
    assert not auxiliary_loss(model.plain(0)).requires_grad


# ---------------------------------------------------------------------- forgotten


@with_a_loss
def test_losses_that_are_never_taken_are_refused(stats: str) -> None:
    """In one line that says what to do, while what was pending is let go; a loop that takes them afterwards works."""
    net = Block(stats)
    message = (
        rf"BatchNormLayer\(8, stats={stats}\) has an auxiliary loss, which 100 training forwards did not use: "
        r"add hnetcl\.auxiliary_loss\(module\) to the training loss"
    )
    for _ in range(100):
        entropy(net).backward()
    assert net.norm.pending_losses.total is not None
    last = weakref.ref(net.norm.pending_losses.total)
    with pytest.raises(ValueError, match=f"^{message}$"):
        net(batch()[0])
    gc.collect()
    assert last() is None
    for _ in range(150):
        (entropy(net) + auxiliary_loss(net)).backward()
    net.norm.auxiliary_limit = 200  # for one that runs often in a forward
    for _ in range(150):
        entropy(net)
    auxiliary_loss(net).backward()


@with_a_loss
def test_forwards_that_teach_nothing_may_be_as_many_as_they_like(stats: str) -> None:
    net = Block(stats)
    with torch.no_grad():
        for _ in range(150):
            net(batch()[0])
    net.eval()
    for _ in range(150):
        net(batch()[0])
    assert not auxiliary_loss(net).requires_grad


# ---------------------------------------------------------------------- recomputation


@with_a_loss
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("separately", [False, True])
def test_recomputation_counts_once(stats: str, times: int, separately: bool) -> None:
    """A forward under `checkpoint` gives the gradients of one without it, and leaves nothing pending."""
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        net = Block(stats, times=times, again=again)
        for _ in range(2):
            net.zero_grad()
            loss = entropy(net)
            if separately:
                loss.backward()
                auxiliary_loss(net).backward()
            else:
                (loss + auxiliary_loss(net)).backward()
            assert not auxiliary_loss(net).requires_grad
            found.append(gradients(net))
    assert_equal(found[0], found[2])  # later a plain net's rows differ, which a recomputation moves again, as it does torch's
    assert found[1].keys() == found[3].keys()


@with_a_loss
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_under_a_hypernetwork_counts_once(stats: str, reentrant: bool) -> None:
    """Two tasks in one loss; rows move once."""
    models = [under(stats, again=again, reentrant=reentrant) for again in (False, True)]
    found = []
    for model in models:
        torch.manual_seed(1)
        for _ in range(2):
            model.zero_grad()
            (entropy(partial(model, task=0)) + entropy(partial(model, task=1)) + auxiliary_loss(model)).backward()
            assert not auxiliary_loss(model).requires_grad
        found.append(gradients(model))
    assert_close(*found)
    assert_close(*(model.state_dict() for model in models))


@with_a_loss
def test_reentrant_recomputation_is_refused(stats: str) -> None:
    """Its first forward has no gradients, so it would have no loss."""
    net = Block(stats, again=True, reentrant=True)
    x, y = batch()
    loss = F.cross_entropy(net(x.requires_grad_()), y) + auxiliary_loss(net)
    with pytest.raises(ValueError, match=r"has an auxiliary loss, which needs checkpoint\(\.\.\., use_reentrant=False\)"):
        loss.backward()


# ---------------------------------------------------------------------- torch.compile, torch.func


@pytest.mark.slow
@with_a_loss
@pytest.mark.parametrize("times", [1, 2])
def test_a_training_step_is_one_graph(stats: str, times: int) -> None:
    """Forward, cross entropy and auxiliary loss; compiled once, with the gradients of the plain step."""
    torch._dynamo.reset()
    counter = CompileCounter()
    models = [under(stats, times=times) for _ in range(2)]

    def step(model: HyperModel, x: Tensor, y: Tensor, task: Tensor) -> Tensor:
        return F.cross_entropy(model.run(model.hnet(task), x, task), y) + auxiliary_loss(model.net)

    found = []
    for model, run in zip(models, (step, torch.compile(step, backend=counter, fullgraph=True)), strict=True):
        torch.manual_seed(1)
        x, y = batch()
        model.find_buffers(x, 0)
        for number in range(5):
            model.zero_grad()
            run(model, x, y, torch.tensor(number % 2)).backward()
            assert model.net.get_submodule("norm").pending_losses.total is None  # type: ignore[union-attr]
        found.append(gradients(model))
    assert counter.frame_count == 1
    assert_close(*found)


@pytest.mark.slow
@with_a_loss
def test_a_compiled_network_leaves_its_losses_outside(stats: str) -> None:
    """However many forwards are accumulated nothing is compiled anew; and too many are refused."""
    torch._dynamo.reset()
    counter = CompileCounter()
    net = Block(stats)
    plain = copy.deepcopy(net)
    compiled = torch.compile(net, backend=counter)
    for _ in range(3):
        x, _ = batch()
        for _ in range(9):
            compiled(x).sum().backward()
            plain(x).sum().backward()
        losses = [auxiliary_loss(each) for each in (net, plain)]
        assert_close(*losses)
        for loss in losses:
            loss.backward()
    assert_close(gradients(net), gradients(plain))
    assert counter.frame_count == 2
    for _ in range(100):
        compiled(x)
    with pytest.raises(ValueError, match=r"add hnetcl\.auxiliary_loss"):
        compiled(x)


@with_a_loss
def test_recomputation_in_a_compiled_step(stats: str) -> None:
    """With `checkpoint` it counts once; torch can't take both in one graph, which is told."""
    found = []
    for again, on in ((False, "off"), (True, "off"), (True, "on")):
        torch._dynamo.reset()
        model = under(stats, again=again).train()
        method, optimizer = Finetune(), torch.optim.SGD(model.parameters(), 0.1)
        step = TrainingStep(model, method, torch.device("cpu"), on, "aot_eager")
        run = run_of(model, 0, optimizer)
        method.start_task(run)
        torch.manual_seed(1)
        if on == "on":
            with pytest.raises(ArgumentError, match=r"trainer\.compile=on: not possible in one graph"):
                take(step, run, *batch())
            continue
        for _ in range(3):
            take(step, run, *batch())
            optimizer.step()
        found.append(model.state_dict())
    assert_close(found[1], found[0])


@with_a_loss
def test_transforms_in_evaluation_leave_nothing(stats: str) -> None:
    net = Block(stats).eval()
    parameters = {name: value.detach() for name, value in net.named_parameters()}
    x = torch.randn(5, 12, 6)
    run: Callable[..., Tensor] = partial(functional_call, net, parameters)
    assert_close(torch.func.vmap(run)(x), torch.stack([net(each) for each in x]))
    torch.func.grad(lambda p: functional_call(net, p, (x[0],)).sum())(parameters)
    assert not auxiliary_loss(net).requires_grad


@with_a_loss
def test_a_loss_that_is_left_of_a_transform_is_refused(stats: str) -> None:
    """Within `torch.func.grad` it is a loss like any other; after it there is nothing to differentiate."""
    net = Block(stats)
    x, _ = batch()

    def loss(p: dict[str, Tensor], take: bool) -> Tensor:
        y = functional_call(net, (p, {name: value.clone() for name, value in net.named_buffers()}), (x,)).sum()
        total: Tensor = y + auxiliary_loss(net) if take else y
        return total

    def differentiate(take: bool) -> dict[str, Tensor]:
        found: dict[str, Tensor] = torch.func.grad(partial(loss, take=take))(
            {n: p.detach().clone() for n, p in net.named_parameters()}
        )
        return found

    own = copy.deepcopy(net)
    (own(x).sum() + auxiliary_loss(own)).backward()
    assert_close(differentiate(take=True), gradients(own))
    differentiate(take=False)
    with pytest.raises(ValueError, match=r"call hnetcl\.auxiliary_loss within it"):
        auxiliary_loss(net)
    differentiate(take=False)
    net(x)
    auxiliary_loss(net).backward()
