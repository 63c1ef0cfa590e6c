"""The compiled training step: one graph for the loss, and one for a loss with penalty, whatever the task."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from steps import run_of, take
from torch import Tensor, nn

from hnetcl.algebra import ALGEBRAS
from hnetcl.bn import BatchNormLayer, writable_parameters
from hnetcl.compiling import can_compile, compile_step
from hnetcl.errors import ArgumentError
from hnetcl.hnets import DirectHyperNetwork, HyperNetwork
from hnetcl.hnets.generators.chunk_mlp import ReLU
from hnetcl.methods import Method
from hnetcl.methods.finetune import Finetune
from hnetcl.methods.output_regularizer import OutputRegularizer
from hnetcl.model import HyperModel
from hnetcl.nets import MLP, LeNet
from hnetcl.tasks import load_images, permuted_sequence
from hnetcl.training import Result, Trainer, TrainingStep
from hnetcl.training.optimizers import sgd

CPU = torch.device("cpu")
TASKS = 5
SGD = sgd(lr=0.05)  # Adam would make steps of rounding errors
CHUNKED = partial(HyperNetwork, generator="chunked", hidden=(8,), embedding_dim=4, chunk_embedding_dim=4, chunk_size=40)
LONG = partial(HyperNetwork, generator="chunked", hidden=(8,), embedding_dim=4, chunk_embedding_dim=4, chunk_size=400)
pytestmark = [  # raised inside torch's compiler
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


class Counting:
    """A compiler that leaves graphs as they are, and keeps them."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward


def model(net: type[MLP] | type[LeNet] = MLP, algebra: Any = "real", stats: Any = "tracked", hnet: Any = CHUNKED) -> HyperModel:
    torch.manual_seed(0)
    module = net(
        (1, 16, 16), 3, algebra=algebra, hidden=(8,), norm=lambda width: BatchNormLayer(width, algebra=algebra, stats=stats)
    )
    initial = {name: value.detach().clone() for name, value in writable_parameters(module).items()}
    return HyperModel(module, hnet({name: value.shape for name, value in initial.items()}, TASKS, initial=initial))


def steps(step: TrainingStep, task: int, number: int = 3) -> None:
    """A few steps of a task on noise."""
    generator = torch.Generator().manual_seed(task)
    optimizer, _ = SGD.make(step.model.train(), number)
    step.model.start_task(task)
    run = run_of(step.model, task, optimizer, generator)
    step.method.start_task(run)
    for _ in range(number):
        x, y = torch.randn(12, 1, 16, 16, generator=generator), torch.randint(3, (12,), generator=generator)
        take(step, run, x, y)
        optimizer.step()


def fit(data_root: Path, compile: Any, backend: Any, algebra: Any, number: int) -> tuple[Result, dict[str, Tensor]]:
    """A whole training."""
    sequence = permuted_sequence(lambda _: load_images("tiny", data_root), num_tasks=TASKS, val_size=0)
    torch.manual_seed(0)
    net = MLP(sequence.in_shape, 6, hidden=(8,), algebra=algebra, norm=lambda width: BatchNormLayer(width, algebra=algebra))
    initial = {name: value.detach().clone() for name, value in net.named_parameters()}
    hnet = CHUNKED({name: value.shape for name, value in initial.items()}, TASKS, initial=initial)
    generator, method = torch.Generator().manual_seed(0), OutputRegularizer(beta=0.1)
    trainer = Trainer(HyperModel(net, hnet), sequence, method, SGD, generator, steps=number, batch_size=16, compile="off")
    trainer.step = TrainingStep(trainer.model, method, CPU, compile, backend)
    return trainer.fit(), trainer.model.saved_tensors()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stats", "hnet", "method"),
    [
        ("tracked", CHUNKED, OutputRegularizer(beta=0.1)),
        ("learnable", CHUNKED, OutputRegularizer(beta=0.1, task_weights=[1.0, 2.0, 0.0, 1.0])),
        (
            "distilled",
            partial(HyperNetwork, generator="full", hidden=(4,), embedding_dim=4),
            OutputRegularizer(beta=0.1, targets="online"),
        ),
        (
            "tracked",
            partial(HyperNetwork, generator="full", hidden=(4,), embedding_dim=4),
            OutputRegularizer(beta=0.1, sample=2),
        ),
        ("tracked", LONG, OutputRegularizer(beta=0.1)),
        ("tracked", CHUNKED, OutputRegularizer(beta=0.1, sample=1)),
        ("tracked", CHUNKED, OutputRegularizer(beta=0.1, sample=1, lookahead=True)),
        ("tracked", CHUNKED, OutputRegularizer(beta=0.1, tasks_at_once=2)),
        ("tracked", partial(DirectHyperNetwork, per_task=("head.*",)), Finetune()),
    ],
)
def test_nothing_is_compiled_after_the_second_task(stats: str, hnet: Any, method: Method) -> None:
    """One graph for the loss, in the first task; in the second one for loss and penalty. A penalty that comes after the loss's
    gradients is not compiled."""
    compiler = Counting()
    step = TrainingStep(model(stats=stats, hnet=hnet), method, CPU, "on", compiler)
    alone = isinstance(method, Finetune) or (
        isinstance(method, OutputRegularizer) and (method.lookahead or method.tasks_at_once)
    )
    found = []
    for task in range(TASKS):
        steps(step, task)
        found.append(len(compiler.graphs))
    assert found == [1, *[1 if alone else 2] * (TASKS - 1)]


def test_one_form_of_targets_for_all_tasks() -> None:
    """Though for a single old task numbers would be less work."""
    long, method = model(hnet=LONG), OutputRegularizer(beta=0.1)
    assert not long.hnet.record(torch.arange(1), at_once=1).common
    for task in range(1, TASKS):
        method.hold(long.hnet, task, SGD.make(long, 1)[0], torch.Generator())
        assert method.record is not None
        assert method.record.common


@pytest.mark.slow
@pytest.mark.parametrize("net", [MLP, LeNet])
@pytest.mark.parametrize("algebra", ALGEBRAS)
def test_our_own_networks_are_one_graph(net: type[MLP] | type[LeNet], algebra: str) -> None:
    compiler = Counting()
    steps(TrainingStep(model(net, algebra), Finetune(), CPU, "on", compiler), 0)
    assert len(compiler.graphs) == 1


@pytest.mark.parametrize("algebra", ["real", "quaternion"])
def test_compiled_training_ends_where_plain_training_does(algebra: str, data_root: Path) -> None:
    """Accuracies, hypernetwork and rows of statistics; by the graphs that torch's own compiler gets, with their backward."""
    (plain, tensors), (compiled, found) = (fit(data_root, on, "aot_eager", algebra, 8) for on in ("off", "on"))
    torch.testing.assert_close(plain.matrix, compiled.matrix, atol=0.02, rtol=0, equal_nan=True)
    torch.testing.assert_close(tensors, found, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_compiled_code_trains_as_plain_code_does(data_root: Path) -> None:
    if not can_compile(CPU):
        pytest.skip("torch.compile needs a C++ compiler")
    (plain, tensors), (compiled, found) = (fit(data_root, on, "inductor", "real", 4) for on in ("off", "on"))
    torch.testing.assert_close(plain.matrix, compiled.matrix, atol=0.02, rtol=0, equal_nan=True)
    torch.testing.assert_close(tensors, found, rtol=1e-3, atol=1e-4)


def test_what_is_drawn_in_a_compiled_step_is_drawn_once() -> None:
    """Dropout's mask is the same in backward: for given masks the function is homogeneous of degree two."""
    if not can_compile(CPU):
        pytest.skip("torch.compile needs a C++ compiler")

    def function(x: Tensor, w: Tensor) -> Tensor:
        hidden = F.relu(F.dropout(x * w, 0.5) @ torch.ones(20, 20))
        return F.relu(F.dropout2d(hidden[..., None, None], 0.3) * torch.rand(12, 20, 1, 1)).square().sum()

    compiled = compile_step(function, "inductor", CPU)
    for _ in range(3):
        w = torch.randn(20, requires_grad=True)
        value = compiled(torch.randn(12, 20), w)
        (gradient,) = torch.autograd.grad(value, w)
        torch.testing.assert_close(gradient @ w / 2, value)


def test_the_trunks_relu_is_torchs() -> None:
    """Compiled too, where its derivative is written in another way; zero has derivative zero."""
    x, weights = torch.tensor([-2.0, -0.0, 0.0, 1e-38, 3.0, float("inf")]), torch.arange(6.0)
    gradients = []
    for relu in (nn.ReLU(), ReLU(), torch.compile(ReLU(), backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        y = relu(leaf)
        assert torch.equal(y, F.relu(x))
        gradients.append(torch.autograd.grad(y, leaf, weights)[0])
    assert all(torch.equal(each, gradients[0]) for each in gradients)


class Reading(nn.Module):
    """A network that reads a value on the host, which no graph holds."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(x.flatten(1))
        return y if y.sum().item() > 0 else 2 * y


def reading() -> HyperModel:
    net = Reading()
    return HyperModel(net, CHUNKED({name: value.shape for name, value in net.named_parameters()}, TASKS))


def test_what_is_not_one_graph_is_refused() -> None:
    with pytest.raises(
        ArgumentError, match=r"trainer\.compile=on: not possible in one graph \(.+\); allowed: auto, off"
    ) as error:
        steps(TrainingStep(reading(), Finetune(), CPU, "on", "eager"), 0)
    assert "\n" not in str(error.value)


def test_auto_goes_on_without_and_says_so() -> None:
    """Where it would have compiled: here, on a CPU that passes for another device."""
    step = TrainingStep(reading(), Finetune(), torch.device("meta"), "auto", "eager")
    step.device = CPU
    with pytest.warns(UserWarning, match="training steps are not compiled: not possible in one graph"):
        steps(step, 0)
    steps(step, 1)  # a second warning would be an error


def test_auto_is_off_on_a_cpu() -> None:
    assert not TrainingStep(model(), Finetune(), CPU).compiled
    assert not TrainingStep(model(), Finetune(), CPU, "off").compiled
    with pytest.raises(ArgumentError, match=r"trainer\.compile=yes: allowed: auto, off, on"):
        TrainingStep(model(), Finetune(), CPU, "yes")


def test_a_method_knows_no_compiler() -> None:
    """A trainer that compiles nothing has nothing compiled by one before it, though the method is the same."""
    method, compiler = OutputRegularizer(beta=0.1), Counting()
    TrainingStep(model(), method, CPU, "on", compiler)
    step = TrainingStep(model(), method, CPU, "off")
    for task in range(2):
        steps(step, task)
    assert not compiler.graphs
