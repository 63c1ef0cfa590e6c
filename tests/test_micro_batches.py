"""Steps in micro-batches make the gradients of whole batches, and what can't is refused by name."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hnetcl.build import build
from hnetcl.config import Config
from hnetcl.errors import ArgumentError
from hnetcl.methods import Inputs, Losses, Method, Run
from hnetcl.methods.lwf import LwF
from hnetcl.model import HyperModel
from hnetcl.registry import find, names
from hnetcl.tasks import Batches
from hnetcl.training import TrainingStep
from hnetcl.training.options import check_options

METHODS: dict[str, list[str]] = {  # name -> what makes it small, and its parts all but nothing
    "agem": ["method.size=30", "method.reference=16"],
    "der": ["method.size=30", "method.alpha=0.7"],
    "ewc": ["method.samples=10", "method.lambda_=1000"],
    "finetune": [],
    "gdumb": ["method.size=30"],
    "icarl": ["method.size=30"],
    "joint": [],
    "l2": ["method.lambda_=3"],
    "lwf": [],
    "mas": ["method.samples=10", "method.lambda_=3"],
    "online_ewc": ["method.samples=10", "method.lambda_=1000"],
    "output_regularizer": ["method.beta=3"],
    "replay": ["method.size=30", "method.weighting=tasks"],
    "separate": [],
    "si": ["method.c=10"],
}
MODELS = {
    "heads": ["hnet=direct"],
    "one_head": ["hnet=direct", "scenario=class", "active_classes=current"],  # a mask of each sample's own
    "hypernetwork": ["hnet=chunked", "hnet.hidden=[16]", "hnet.embedding_dim=8"],
}
CPU = torch.device("cpu")


def test_every_method_is_in_the_table() -> None:
    assert METHODS.keys() == {n for n in names("method") if find("method", n).__module__.startswith("hnetcl.")}


def gradients(config: Config, accumulate: int, batch_size: int = 12) -> tuple[dict[str, Tensor], Losses, dict[str, Tensor]]:
    """Of the third step of the third task; what was found; and what the method keeps of its steps.

    The steps before are the same whatever is asked for.
    """
    torch.manual_seed(0)
    parts = build(config, CPU)
    model, method, sequence = parts.model, parts.method, parts.sequence
    generator = torch.Generator().manual_seed(0)
    whole, split = (TrainingStep(model.train(), method, CPU, "off", accumulate=number) for number in (1, accumulate))
    for task in range(3):
        optimizer, _ = parts.optimizer.make(model, 6)
        run = Run(model, task, sequence, optimizer, generator, config.active_classes or "seen", batch_size=batch_size)
        batches = [Batches(data, batch_size, generator, sequence.first_output(t)) for t, data in enumerate(sequence.tasks)]
        method.start_task(run)
        for number in range(3):
            last = (task, number) == (2, 2)
            run.step = number

            def draw(of: int | None = None, batches: list[Batches] = batches, task: int = task) -> tuple[Tensor, Tensor]:
                return batches[task if of is None else of].draw()

            inputs = method.inputs(run, draw)
            losses = (split if last else whole)(run, inputs)
            if last:
                found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            optimizer.step()
            method.after_step(run, inputs, losses)
        method.end_task(run)
    return found, losses, method.state_dict()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_whole_batch(
    method: str, model: str, tiny: list[str], compose: Callable[..., Config]
) -> None:
    """Of batches of 12 in five parts of three and two; parts of the loss, logits and what is kept are the same, too."""
    if (method == "separate" and model != "heads") or (method == "icarl" and model != "one_head"):
        pytest.skip("the method takes no such network")
    small = [word for word in tiny if not word.startswith("hnet.")]
    words = [*small, f"method={method}", *METHODS[method], *MODELS[model], "bn=real", "net.norm=none"]
    config = compose(*words, "optimizer=sgd", "optimizer.lr=0.005")
    one, several = gradients(config, 1), gradients(config, 5)
    assert one[0].keys() == several[0].keys()
    largest = max(float(value.abs().max()) for value in one[0].values())
    assert largest > 0
    torch.testing.assert_close(several[0], one[0], rtol=1e-4, atol=1e-5 * largest)
    for a, b in zip(several[1], one[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(several[2], one[2], rtol=1e-4, atol=1e-6)


def test_a_lookahead_comes_after_the_last_part(tiny: list[str], compose: Callable[..., Config]) -> None:
    """The penalty at theta + Delta theta takes the gradients of all."""
    config = compose(*tiny, "method.lookahead=true", "method.beta=3", "bn=real", "net.norm=none", "optimizer.lr=0.001")
    one, several = gradients(config, 1), gradients(config, 3)
    torch.testing.assert_close(several[0], one[0], rtol=1e-4, atol=1e-6)


def test_batch_norm_sees_micro_batches(tiny: list[str], compose: Callable[..., Config]) -> None:
    """Its rows move once for each, and gradients are not those of the batch."""
    small = [word for word in tiny if not word.startswith("hnet.")]
    config = compose(*small, "method=finetune", "bn=real", "optimizer=sgd")
    one, several = gradients(config, 1), gradients(config, 3)
    assert not torch.allclose(next(iter(several[0].values())), next(iter(one[0].values())))


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of what it does itself
@pytest.mark.parametrize("sizes", [(12, 4), (13, 4)])
def test_compiled_parts_add_up_too(sizes: tuple[int, int], tiny: list[str], compose: Callable[..., Config]) -> None:
    """In one graph for all parts of a size."""
    small = [word for word in tiny if not word.startswith("hnet.")]
    parts = build(compose(*small, "method=finetune", "bn=real", "net.norm=none"), CPU)
    model, graphs = parts.model.train(), []

    def backend(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    number, accumulate = sizes
    x, y = torch.randn(number, *parts.sequence.in_shape), torch.randint(2, (number,))
    found = []
    for compile, parts_of in (("off", 1), ("on", accumulate)):
        optimizer, _ = parts.optimizer.make(model, 1)
        run = Run(model, 0, parts.sequence, optimizer, torch.Generator())
        step = TrainingStep(model, parts.method, CPU, compile, backend, parts_of)
        step(run, Inputs(x, y, 0, label_smoothing=0.1))
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found[1], found[0])
    assert len(graphs) <= 1 + (number % accumulate > 0)


class OwnInputs(Method):
    """Adds something to its inputs, and does not say how that is split."""

    def inputs(self, run: Run, draw: Any) -> Inputs:
        return super().inputs(run, draw)


class OwnLoss(LwF):
    def loss(self, model: HyperModel, inputs: Inputs) -> Losses:
        return super().loss(model, inputs)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (Method(), {"accumulate": 20}, "accumulate=20: leaves fewer than two images in a micro-batch; allowed: 1 to 8, for"),
        (OwnInputs(), {"patience": 2}, "patience=2: is not for OwnInputs, which does not say what its steps change"),
        (Method(), {"patience": 2, "epochs": [0.4, 1.0]}, "patience=2: goes unused, for no task takes more than an epoch"),
    ],
)
def test_refused_by_name(
    method: Method, options: dict[str, Any], message: str, tiny: list[str], compose: Callable[..., Config]
) -> None:
    sequence = build(compose(*tiny), CPU).sequence
    epochs = options.pop("epochs", [3.0])
    wanted = {"label_smoothing": 0.0, "patience": None, "accumulate": 1, **options}
    with pytest.raises(ArgumentError) as caught:
        check_options(method, sequence, wanted, 16, epochs)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [OwnInputs(), OwnLoss()])
def test_a_method_that_does_not_say_how_is_refused(method: Method, tiny: list[str], compose: Callable[..., Config]) -> None:
    model = build(compose(*tiny), CPU).model
    name = type(method).__name__
    with pytest.raises(ArgumentError, match=f"^accumulate=2: is not for {name}, which has inputs or a loss of its own, but"):
        TrainingStep(model, method, CPU, accumulate=2)


def test_parts_split_what_samples_have(tiny: list[str]) -> None:
    """Of each sample its own mask; a mask of all stays whole. Nothing else is split that is not named."""
    x, y = torch.arange(5.0)[:, None], torch.arange(5)
    own = Inputs(x, y, 0, torch.eye(5).bool(), {"a": x, "b": torch.zeros(5)}, {"c": torch.arange(10.0).reshape(2, 5)})
    parts = own.split(2, a=0, c=1, absent=0)
    assert [len(part.y) for part in parts] == [3, 2]
    assert torch.equal(torch.cat([part.tensors["a"] for part in parts]), x)
    assert torch.equal(torch.cat([part.old["c"] for part in parts], 1), own.old["c"])
    assert [part.active.shape for part in parts if part.active is not None] == [(3, 5), (2, 5)]
    assert all(len(part.tensors["b"]) == 5 for part in parts)
    mask = torch.ones(5).bool()
    assert all(part.active is mask for part in replace(own, active=mask).split(2))
