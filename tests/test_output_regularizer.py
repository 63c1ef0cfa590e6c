"""Every option of the output regularizer, alone and together, is the formula, written task by task."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from choices import allowed
from steps import run_of
from torch import Tensor, nn
from torch.optim import Optimizer

from hnetcl.bn import BatchNormLayer
from hnetcl.errors import ArgumentError
from hnetcl.hnets import BaseHyperNetwork, DirectHyperNetwork, HyperNetwork
from hnetcl.methods import Inputs
from hnetcl.methods.output_regularizer import OutputRegularizer
from hnetcl.model import HyperModel
from hnetcl.nets import MLP
from hnetcl.tasks import Batches, TaskSequence, load_images, split_sequence
from hnetcl.training import Trainer
from hnetcl.training.optimizers import adam, sgd

SHAPES = {"body.weight": (20, 30), "body.bias": (20,), "head.weight": (4, 20), "head.bias": (4,)}
OLD, P = 4, 704
TARGETS = allowed("method", "output_regularizer", "targets")
TARGET_DTYPES = allowed("method", "output_regularizer", "targets_dtype")
HNETS: dict[str, Callable[[], BaseHyperNetwork]] = {
    "full": lambda: HyperNetwork(SHAPES, 6, "full", hidden=(6,)),
    "factors": lambda: HyperNetwork(SHAPES, 6, "chunked", hidden=(4,), chunk_size=50),
    "direct": lambda: DirectHyperNetwork(SHAPES, 6),
}
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda params: torch.optim.Adam(params, 0.01),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def move(hnet: BaseHyperNetwork, by: float = 0.1) -> None:
    with torch.no_grad():
        for p in hnet.parameters():
            p.add_(by * torch.randn_like(p))


def rows(hnet: BaseHyperNetwork) -> list[Tensor]:
    """What is written for every old task, one at a time."""
    return [torch.cat([value.flatten() for value in hnet(task).values()]) for task in range(OLD)]


def gradients(value: Tensor, hnet: BaseHyperNetwork) -> list[Tensor]:
    found = torch.autograd.grad(value, list(hnet.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, hnet.parameters(), strict=True)]


def stepped(hnet: BaseHyperNetwork, optimizer: Optimizer) -> BaseHyperNetwork:
    """A copy that has taken the optimizer's step."""
    copy, own = deepcopy((hnet, optimizer))
    for p, original in zip(copy.parameters(), hnet.parameters(), strict=True):
        p.grad = deepcopy(original.grad)
    own.step()
    return copy


def started(hnet: BaseHyperNetwork, optimizer: Optimizer | None = None, **options: Any) -> OutputRegularizer:
    """A method that has seen the hypernetwork before task OLD."""
    method = OutputRegularizer(beta=0.3, **options)
    if options.get("importance") == "fisher":
        method.load_state_dict({"fisher": torch.rand(OLD + 1, P, dtype=torch.float64)})
    method.hold(hnet, OLD, optimizer or torch.optim.Adam(hnet.parameters()), torch.Generator().manual_seed(0))
    return method


def penalty(method: OutputRegularizer, hnet: BaseHyperNetwork) -> Tensor:
    value = method.penalty(hnet)
    assert value is not None
    return value


@pytest.mark.parametrize("kind", HNETS)
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize("tasks_at_once", [None, 2])
@pytest.mark.parametrize(("sample", "task_weights"), [(None, None), (None, [1, 0.5, 2, 0]), (3, [1, 0.5, 2, 3])])
@pytest.mark.parametrize("importance", ["none", "masks", "fisher", "fisher and masks"])
def test_all_options_together_are_the_formula(
    kind: str,
    targets: Any,
    lookahead: bool,
    tasks_at_once: int | None,
    sample: int | None,
    task_weights: Sequence[float] | None,
    importance: str,
) -> None:
    """Penalty and gradients beside a loop over old tasks, with a copy of everything that really takes the step ahead."""
    hnet = HNETS[kind]().double()
    move(hnet)
    optimizer = OPTIMIZERS["sgd" if sample else "adam"](hnet.parameters())
    masks = torch.rand(OLD + 1, P) > 0.3 if "masks" in importance else None
    name: Any = "fisher" if "fisher" in importance else "none"
    method = started(
        hnet,
        optimizer,
        sample=sample,
        targets=targets,
        task_weights=task_weights,
        lookahead=lookahead,
        tasks_at_once=tasks_at_once,
        importance=name,
        masks=masks,
    )
    before = [row.detach().clone() for row in rows(hnet)]
    move(hnet)
    for _ in range(2):  # the second step has momentum
        optimizer.zero_grad()
        torch.cat([value.flatten() for value in hnet(OLD).values()]).square().sum().backward()
        actual = penalty(method, hnet)
        there = stepped(hnet, optimizer) if lookahead else hnet
        far = []
        for task, now in enumerate(rows(there)):
            square = (now - before[task]).square()
            if name == "fisher":
                square = square * method.importance.fisher[task]
            if masks is not None:
                square = square * masks[task]
            far.append(square.sum() * (1.0 if task_weights is None else task_weights[task]))
        sums = [0.3 / (sample or OLD) * torch.stack(some).sum() for some in combinations(far, sample or OLD)]
        expected = min(sums, key=lambda value: abs(float((value - actual).detach())))
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(gradients(actual, hnet), gradients(expected, there))
        actual = penalty(method, hnet)
        actual.backward()
        optimizer.step()


def model_of(hnet: BaseHyperNetwork) -> HyperModel:
    net = nn.Sequential(OrderedDict(body=nn.Linear(30, 20), head=nn.Linear(20, 4)))
    return HyperModel(net.to(next(hnet.parameters()).dtype), hnet)


def inputs_of(method: OutputRegularizer, model: HyperModel) -> Inputs:
    """Of a step on a fixed batch."""
    x, y = torch.linspace(-1, 1, 180, dtype=next(model.hnet.parameters()).dtype).reshape(6, 30), torch.arange(6) % 4
    return method.inputs(run_of(model, OLD, torch.optim.Adam(model.hnet.parameters())), lambda: (x, y))


@pytest.mark.parametrize("kind", HNETS)
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("sample", [None, 1, 3])
@pytest.mark.parametrize("importance", ["none", "fisher"])
def test_the_loss_is_cross_entropy_and_penalty(kind: str, targets: str, sample: int | None, importance: str) -> None:
    """Parameters and penalty are written in one forward: the sum and its gradients are those of two."""
    hnet = HNETS[kind]().double()
    move(hnet)
    options: dict[str, Any] = {"targets": targets, "sample": sample, "task_weights": [1, 0.5, 2, 3], "importance": importance}
    torch.manual_seed(0)
    one = started(hnet, **options)
    torch.manual_seed(0)
    two = started(hnet, **options)
    move(hnet)
    model = model_of(hnet)
    inputs = inputs_of(one, model)
    losses = one.loss(model, replace(inputs, task=torch.tensor(OLD)))
    logits = model(inputs.x, OLD)
    expected, far = F.cross_entropy(logits, inputs.y), penalty(two, hnet)
    assert losses.parts.keys() == {"loss", "penalty"}
    torch.testing.assert_close(losses.parts["loss"], expected)
    torch.testing.assert_close(losses.parts["penalty"], far)
    torch.testing.assert_close(losses.total, expected + far)
    torch.testing.assert_close(losses.logits, logits)
    torch.testing.assert_close(*(gradients(value, hnet) for value in (losses.total, expected + far)))


@pytest.mark.parametrize("options", [{"lookahead": True}, {"tasks_at_once": 2}, {"tasks_at_once": 2, "sample": 3}])
def test_what_comes_after_the_loss(options: dict[str, Any]) -> None:
    """Lookahead, which needs the loss's gradients, and forwards whose graphs are dropped: their gradients are added."""
    torch.manual_seed(0)
    hnet = HNETS["full"]()
    one, two = started(hnet, **options), started(hnet, **options)
    move(hnet)
    model = model_of(hnet)
    inputs = inputs_of(one, model)
    assert not inputs.old
    losses = one.loss(model, replace(inputs, task=torch.tensor(OLD)))
    assert losses.parts.keys() == {"loss"}
    losses.total.backward()
    before = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in hnet.parameters()]
    expected = penalty(two, hnet)
    added = gradients(expected, hnet)
    parts = one.after_backward(run_of(model, OLD, torch.optim.Adam(hnet.parameters())), inputs)
    assert parts.keys() == {"penalty"}
    assert not parts["penalty"].requires_grad
    torch.testing.assert_close(parts["penalty"], expected.detach())
    for p, old, new in zip(hnet.parameters(), before, added, strict=True):
        torch.testing.assert_close(torch.zeros_like(p) if p.grad is None else p.grad, old + new)
    together = started(hnet, tasks_at_once=2, sample=2)
    inputs = inputs_of(together, model)
    assert inputs.old
    assert together.after_backward(run_of(model, OLD, torch.optim.Adam(hnet.parameters())), inputs) == {}


def sequence_of(data_root: Path) -> TaskSequence:
    return split_sequence(lambda _: load_images("tiny", data_root), num_tasks=3, val_size=20)


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("kind", ["chunked", "direct"])
def test_a_whole_training_with_lookahead(name: str, kind: str, data_root: Path) -> None:
    """Three tasks, each step: the loss's gradient, plus the penalty's where a copy has stepped to by it."""
    sequence, steps = sequence_of(data_root), 4
    net = MLP(sequence.in_shape, sequence.num_classes, hidden=(8,), norm=BatchNormLayer)
    initial = {key: value.detach().clone() for key, value in net.named_parameters()}
    shapes = {key: value.shape for key, value in initial.items()}
    hnet: BaseHyperNetwork = DirectHyperNetwork(shapes, 3, initial=initial)
    if kind == "chunked":
        hnet = HyperNetwork(shapes, 3, "chunked", hidden=(8,), chunk_size=100, initial=initial)
    reference = HyperModel(net, hnet)
    ends = []
    for lookahead in (True, False):
        model, method = deepcopy(reference), OutputRegularizer(beta=0.5, lookahead=lookahead)
        factory = sgd(lr=0.02, schedule="constant", momentum=0.9) if name == "sgd" else adam(lr=0.02, schedule="constant")
        Trainer(model, sequence, method, factory, torch.Generator().manual_seed(5), steps=steps, batch_size=16).fit()
        ends.append([p.detach() for p in model.hnet.parameters()])

    generator = torch.Generator().manual_seed(5)
    params = list(reference.hnet.parameters())
    for task in range(3):
        optimizer: Optimizer = torch.optim.Adam(params, 0.02)
        if name == "sgd":
            optimizer = torch.optim.SGD(params, 0.02, momentum=0.9)
        batches = Batches(sequence[task], 16, generator)
        targets = [reference.hnet.flat(torch.tensor([t])).detach() for t in range(task)]
        for _ in range(steps):
            x, y = batches.draw()
            optimizer.zero_grad()
            F.cross_entropy(reference.train()(x, task), y).backward()
            if task:
                there = stepped(reference.hnet, optimizer)
                far = [(there.flat(torch.tensor([t])) - target).square().sum() for t, target in enumerate(targets)]
                value = 0.5 / task * torch.stack(far).sum()
                for p, gradient in zip(params, gradients(value, there), strict=True):
                    p.grad = gradient if p.grad is None else p.grad + gradient
            optimizer.step()
    right, other = (torch.cat([(p - q).detach().flatten() for p, q in zip(params, end, strict=True)]).norm() for end in ends)
    assert right < 0.01 * other  # not equal: Adam enlarges what is rounded


@pytest.mark.parametrize("kind", HNETS)
@pytest.mark.parametrize("dtype", TARGET_DTYPES)
def test_targets_of_another_dtype_are_rounded_targets(kind: str, dtype: Any) -> None:
    """Compared in the hypernetwork's own dtype: the penalty is that of the record, rounded once."""
    hnet = HNETS[kind]()
    move(hnet)
    plain, rounded = started(hnet), started(hnet, targets_dtype=dtype, tasks_at_once=2)
    move(hnet)
    assert plain.record is not None
    assert rounded.record is not None
    own = getattr(torch, dtype)
    assert {value.dtype for value in rounded.record.by_task} == {own}
    expected = hnet.squared_distance(torch.arange(OLD), plain.record.to(dtype=own).to(dtype=torch.float32))
    actual = penalty(rounded, hnet)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, 0.3 / OLD * expected.sum())
    if dtype in ("float32", "float64"):
        torch.testing.assert_close(actual, penalty(plain, hnet))


def test_targets_on_the_cpu_are_the_targets() -> None:
    hnet = HNETS["factors"]()
    methods = [started(hnet, sample=2, targets_device=device) for device in (None, "cpu")]
    move(hnet)
    assert torch.equal(*(penalty(method, hnet) for method in methods))


@pytest.mark.parametrize("kind", HNETS)
@pytest.mark.parametrize("importance", ["none", "fisher"])
@pytest.mark.parametrize("lookahead", [False, True])
def test_no_more_tasks_at_once_than_allowed(
    kind: str, importance: str, lookahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither to record them, nor in the forward, nor when it is computed again; and no graph is kept in between."""
    hnet = HNETS[kind]().double()
    counts: list[int] = []

    def watched(tasks: Tensor, whole: Callable[..., Any], *rest: Any) -> Any:
        counts.append(len(tasks))
        return whole(tasks, *rest)

    for name in ("record", "squared_distance", "flat"):
        whole = getattr(hnet, name)
        monkeypatch.setattr(hnet, name, lambda tasks, *rest, whole=whole: watched(tasks, whole, *rest))
    saved = []
    for cap in (None, 2):
        method = started(hnet, importance=importance, lookahead=lookahead, tasks_at_once=cap)
        for p in hnet.parameters():
            p.grad = torch.ones_like(p)
        sizes: list[int] = []
        own = {p.data_ptr() for p in hnet.parameters()}

        def keep(value: Tensor, sizes: list[int] = sizes, own: set[int] = own) -> Tensor:
            sizes.append(0 if value.data_ptr() in own else value.numel())
            return value

        counts.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            value = penalty(method, hnet)
            saved.append(sum(sizes))
        gradients(value, hnet)
        assert max(counts) <= (cap or OLD)
    assert saved[1] < saved[0] / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks_at_once": 0}, "tasks_at_once=0: must be at least 1"),
        ({"fisher_samples": 0}, "fisher_samples=0: must be at least 1"),
        ({"importance": "fischer"}, "importance=fischer: did you mean fisher?"),
        ({"targets_dtype": "int8"}, "targets_dtype=int8: allowed: bfloat16"),
        ({"targets_device": "gpu"}, "targets_device=gpu: "),
        ({"targets": "online", "targets_dtype": "float16"}, "targets_dtype=float16: targets=online stores no targets"),
        ({"targets": "online", "targets_device": "cpu"}, "targets_device=cpu: targets=online stores no targets"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        OutputRegularizer(beta=0.3, **options)
    assert str(caught.value).startswith(message)


def test_importance_must_be_there_for_every_old_task() -> None:
    hnet = HNETS["full"]()
    optimizer, generator = torch.optim.Adam(hnet.parameters()), torch.Generator()
    with pytest.raises(ArgumentError, match=r"importance=fisher: end_task was called after 0 of 2 old tasks"):
        OutputRegularizer(beta=0.3, importance="fisher").hold(hnet, 2, optimizer, generator)
    for shape in ((1, P), (2, P + 1)):
        with pytest.raises(ArgumentError, match=rf"masks=.*: must be of shape \[tasks, {P}\]; there are 2 old tasks"):
            OutputRegularizer(beta=0.3, masks=torch.ones(shape)).hold(hnet, 2, optimizer, generator)
