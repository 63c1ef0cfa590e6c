"""bfloat16 where it was asked for, and only there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from steps import run_of, take
from torch import Tensor, nn

from hnetcl.algebra import ALGEBRAS
from hnetcl.bn import BatchNormLayer
from hnetcl.cli.jobs import evaluate, train
from hnetcl.config import Config, parse_evaluation
from hnetcl.errors import ArgumentError
from hnetcl.hnets import HyperNetwork
from hnetcl.methods.output_regularizer import OutputRegularizer
from hnetcl.model import HyperModel
from hnetcl.nets import LeNet
from hnetcl.training import TrainingStep
from hnetcl.training.optimizers import sgd


def model(precision: Any, algebra: Any = "real") -> HyperModel:
    torch.manual_seed(0)
    net = LeNet((1, 16, 16), 3, algebra=algebra, hidden=(8,), norm=lambda width: BatchNormLayer(width, algebra=algebra))
    initial = {name: value.detach().clone() for name, value in net.named_parameters()}
    hnet = HyperNetwork(
        {name: value.shape for name, value in initial.items()}, 3, "full", hidden=(4,), embedding_dim=4, initial=initial
    )
    return HyperModel(net, hnet, precision=precision)


@pytest.mark.parametrize("algebra", ALGEBRAS)
def test_the_network_computes_in_bfloat16_and_all_that_is_kept_is_float32(algebra: str) -> None:
    low, high = model("bfloat16", algebra), model("float32", algebra)
    inside: list[torch.dtype] = []
    for layer in low.net.modules():
        if isinstance(layer, BatchNormLayer):
            layer.register_forward_pre_hook(lambda _, args: inside.append(args[0].dtype))
    x, y = torch.randn(32, 1, 16, 16), torch.randint(3, (32,))
    penalties = []
    for each in (low, high):
        method = OutputRegularizer(beta=0.1)
        step = TrainingStep(each, method, torch.device("cpu"), "off")
        optimizer, _ = sgd(lr=0.1, schedule="constant").make(each, 1)
        run = run_of(each, 1, optimizer)
        method.start_task(run)
        with torch.no_grad():
            each.hnet.embeddings.add_(0.01)  # type: ignore[union-attr]
        losses, _ = take(step, run, x, y)
        assert losses.logits.dtype == losses.total.dtype == losses.parts["loss"].dtype == torch.float32
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in each.parameters())
        penalties.append(losses.parts["penalty"])
    assert set(inside) == {torch.bfloat16}
    assert penalties[0] == penalties[1] > 0
    assert {value.dtype for value in low.saved_tensors().values() if value.is_floating_point()} == {torch.float32}
    for a, b in zip(low.eval().all_tasks(x), high.eval().all_tasks(x), strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.1)
        assert not torch.equal(a, b)


def test_a_double_network_stays_double() -> None:
    net = nn.Linear(4, 2).double()
    hnet = HyperNetwork(
        {name: value.shape for name, value in net.named_parameters()}, 1, "full", hidden=(4,), embedding_dim=4
    ).double()
    logits: Tensor = HyperModel(net, hnet)(torch.randn(3, 4, dtype=torch.float64), 0)
    assert logits.dtype == torch.float64


def test_refused() -> None:
    with pytest.raises(ArgumentError, match="precision=half: allowed: bfloat16, float32"):
        model("half")


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_a_reload_gives_the_same_numbers(
    scenario: str, tiny: list[str], compose: Callable[..., Config], tmp_path: Path
) -> None:
    """Training's own accuracies, to the last digit, in the run's precision."""
    options = [f"scenario={scenario}", "trainer.precision=bfloat16", "trainer.steps=60", "method.beta=0.3"]
    run = train(compose(*tiny, *options, f"run.dir={tmp_path}"))
    rows = [[float(v or "nan") for v in line.split(",")[1:]] for line in (run / "accuracy.csv").read_text().splitlines()[1:]]
    values = {"run": str(run), "task": None, "stats": "own", "scenario": None, "inference": None, "device": "auto"}
    assert evaluate(parse_evaluation(values | {"imports": [], "data": {"root": None}})) == rows[-1]
    if scenario == "task":
        assert json.loads((run / "metrics.json").read_text())["average_accuracy"] > 0.9
