"""What every method must do. A new method is a row of `METHODS`, and is then tested like all others."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hnetcl.build import Parts, build
from hnetcl.cli.jobs import evaluate, train
from hnetcl.config import Config, EvaluationConfig
from hnetcl.errors import ArgumentError
from hnetcl.methods import Inputs, Losses, Method, Run
from hnetcl.registry import find, names, register
from hnetcl.tasks import Batches
from hnetcl.training import Observer, RunDirectory, RunStart
from hnetcl.training.step import TrainingStep

METHODS: dict[str, list[str]] = {  # name -> what makes it small
    "agem": ["method.size=30", "method.reference=16"],
    "der": ["method.size=30"],
    "ewc": ["method.samples=10", "method.lambda_=100"],
    "finetune": [],
    "gdumb": ["method.size=30"],
    "icarl": ["method.size=30"],
    "joint": [],
    "l2": [],
    "lwf": [],
    "mas": ["method.samples=10"],
    "online_ewc": ["method.samples=10", "method.lambda_=100", "method.labels=predicted"],
    "output_regularizer": ["method.importance=fisher", "method.fisher_samples=10", "method.sample=1"],
    "replay": ["method.size=30"],
    "separate": [],
    "si": ["method.c=10"],
}
ONE_NETWORK = ("icarl",)  # methods that take a network that is the same for all tasks, with a logit for each class
PLAIN = ("agem", "finetune", "gdumb", "joint", "separate")  # methods that add nothing to the loss itself
MODELS = {  # what a method must be able to train
    "heads": ["hnet=direct", "bn=quaternion"],
    "one_head": ["hnet=direct", "scenario=class", "bn=real"],
    "domain": ["hnet=direct", "scenario=domain", "net.norm=none", "bn=real"],
    "hypernetwork": ["hnet=chunked", "bn=complex"],
}
STEPS = 6
CPU = torch.device("cpu")

EachMethod = pytest.mark.parametrize("method", METHODS)
EachModel = pytest.mark.parametrize("model", MODELS)
Compose = Callable[..., Config]


@pytest.fixture
def words(tiny: list[str]) -> Callable[[str, str], list[str]]:
    """Method and model -> overrides of a small run."""
    small = [word for word in tiny if not word.startswith(("hnet.", "trainer.steps", "trainer.batch_size"))]

    def call(method: str, model: str) -> list[str]:
        if (method, model) == ("separate", "hypernetwork"):
            pytest.skip("refused, see test_separate_networks_have_nothing_in_common")
        if method in ONE_NETWORK:
            if model not in ("heads", "one_head"):
                pytest.skip("refused, see tests of the method")
            model = "one_head"
        sizes = ["hnet.hidden=[16]", "hnet.embedding_dim=8"] if model == "hypernetwork" else []
        own = [f"method={method}", *METHODS[method], *MODELS[model], *sizes]
        return [*small, *own, "trainer.batch_size=8", f"trainer.steps={STEPS}", "observers=[]", "trainer.threads=1"]

    return call


def test_every_method_is_in_the_table() -> None:
    assert METHODS.keys() == {n for n in names("method") if find("method", n).__module__.startswith("hnetcl.")}


class Stops(Observer):
    """Ends a run in the middle of task 1; the next time before its evaluation; the next time after its checkpoint."""

    lives = 0

    def on_start(self, start: RunStart) -> None:
        type(self).lives += 1
        self.task = start.done

    def on_task_start(self, task: int, steps: int, steps_before: int) -> None:
        self.task = task
        if task == 2 and self.lives == 3:
            raise KeyboardInterrupt

    def on_tick(self, step: int) -> None:
        if (self.task, step, self.lives) == (1, 3, 1):
            signal.raise_signal(signal.SIGTERM)

    def on_phase(self, phase: str) -> None:
        if (self.task, phase, self.lives) == (1, "evaluating", 2):
            signal.raise_signal(signal.SIGTERM)


@EachMethod
@pytest.mark.parametrize("model", ["one_head", "hypernetwork"])  # with rows that tasks share, and with rows of their own
@pytest.mark.usefixtures("users_parts")
def test_a_resumed_run_is_the_undisturbed_one(
    method: str, model: str, words: Callable[[str, str], list[str]], compose: Compose, tmp_path: Path
) -> None:
    """Tensor for tensor, what the method keeps included; and an evaluation from the directory gives the recorded numbers."""
    own, whole, halves = words(method, model), tmp_path / "whole", tmp_path / "halves"
    train(compose(*own, f"run.dir={whole}"))
    Stops.lives = 0
    register("observer", "stops")(Stops)
    for end, position in (
        (SystemExit, "in task 1, after step 3"),
        (SystemExit, "after the training of task 1"),
        (KeyboardInterrupt, "after task 1"),
    ):
        with pytest.raises(end):
            train(compose(*own, f"run.dir={halves}", "observers=[stops]", "resume=true"))
        assert end is KeyboardInterrupt or position in (halves / "train.log").read_text().splitlines()[-1]
    train(compose(*own, f"run.dir={halves}", "resume=true"))
    assert "goes on after task 1" in (halves / "train.log").read_text()
    first, second = (load_file(run / "model.safetensors") for run in (whole, halves))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (whole / "accuracy.csv").read_text() == (halves / "accuracy.csv").read_text()
    kept = [state["method"] for run in (whole, halves) if (state := RunDirectory(run).load_checkpoint())]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    values: dict[str, Any] = {"run": str(whole), "task": None, "stats": "own", "scenario": None, "inference": None}
    found = evaluate(EvaluationConfig(**values, imports=[], device="cpu", data={"root": None}))
    recorded = json.loads((whole / "metrics.json").read_text())["average_accuracy"]
    assert sum(found) / len(found) == pytest.approx(recorded, abs=1e-12)


class Training:
    """A method and what it needs, at the start of a task."""

    def __init__(self, config: Config, task: int, compile: str = "off", backend: str = "eager") -> None:
        torch.manual_seed(0)
        self.parts: Parts = build(config, CPU)
        self.method: Method = self.parts.method
        self.take = TrainingStep(self.parts.model.train(), self.method, CPU, compile, backend)
        self.generator = torch.Generator().manual_seed(0)
        for number in range(task + 1):
            self.start(number)
            if number < task:
                self.step()
                self.method.end_task(self.run)

    def start(self, task: int) -> None:
        sequence, model = self.parts.sequence, self.parts.model
        optimizer, _ = self.parts.optimizer.make(model, STEPS)
        self.asked: list[int] = []  # tasks, of which the method wanted a batch
        self.run = Run(model, task, sequence, optimizer, self.generator)
        self.batches = [Batches(data, 8, self.generator, sequence.first_output(t)) for t, data in enumerate(sequence.tasks)]
        self.method.start_task(self.run)

    def draw(self, of: int | None = None) -> tuple[Tensor, Tensor]:
        self.asked.append(self.run.task if of is None else of)
        return self.batches[self.asked[-1]].draw()

    def step(self) -> tuple[Inputs, Losses]:
        inputs = self.method.inputs(self.run, self.draw)
        losses = self.take(self.run, inputs)
        self.run.optimizer.step()
        self.method.after_step(self.run, inputs, losses)
        self.run.step += 1
        return inputs, losses


@EachMethod
@EachModel
def test_losses_are_sums_of_their_parts(
    method: str, model: str, words: Callable[[str, str], list[str]], compose: Compose
) -> None:
    """The first task is plain training; later parts are finite, and what backward starts from is their sum."""
    config = compose(*words(method, model))
    first, later = Training(config, 0), Training(config, 2)
    _, losses = first.step()
    assert losses.parts.keys() - {"auxiliary"} == {"loss"}
    for _ in range(2):
        inputs, losses = later.step()
        assert "loss" in losses.parts
        assert torch.stack(list(losses.parts.values())).isfinite().all()
        torch.testing.assert_close(torch.stack(list(losses.parts.values())).sum(), losses.total)
        assert losses.logits.shape == (len(inputs.y), later.parts.sequence.num_outputs)
    assert (method in PLAIN) == (losses.parts.keys() == {"loss"})
    assert later.method.sees_old_data == any(task < 2 for task in later.asked)


@EachMethod
@pytest.mark.parametrize("model", ["heads", "hypernetwork"])
def test_the_loss_is_a_pure_function(method: str, model: str, words: Callable[[str, str], list[str]], compose: Compose) -> None:
    """The same inputs give the same loss and gradients, where batch norm does not move its rows in between."""
    training = Training(compose(*words(method, model), "bn.stats=frozen"), 2)
    inputs = training.method.inputs(training.run, training.draw)
    assert isinstance(inputs.task, int)
    told = replace(inputs, task=torch.tensor(inputs.task))
    hnet = training.parts.model.hnet
    found = []
    for _ in range(2):
        hnet.zero_grad()
        losses = training.method.loss(training.parts.model, told)
        losses.total.backward()
        found.append([losses.total.detach(), *(p.grad.clone() for p in hnet.parameters() if p.grad is not None)])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


@EachMethod
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of what it does itself
def test_one_graph_for_all_tasks(method: str, words: Callable[[str, str], list[str]], compose: Compose) -> None:
    """Compiled, the steps find what uncompiled ones do, and from the third task on nothing is compiled."""
    compiled: list[int] = []

    def backend(graph: Any, example: Any) -> Any:
        compiled.append(1)
        return graph.forward

    config = compose(*words(method, "heads"), "bn=real", "net.norm=none")
    plain, graphed = Training(config, 2), Training(config, 2, "on", backend)  # type: ignore[arg-type]
    before = len(compiled)
    torch.testing.assert_close(plain.step()[1].parts, graphed.step()[1].parts)
    assert before <= 2
    assert len(compiled) == before


@EachMethod
def test_the_state_is_all_there_is(method: str, words: Callable[[str, str], list[str]], compose: Compose) -> None:
    """A fresh object that is given the state goes on as the old one; the state is plain tensors."""
    config = compose(*words(method, "one_head"))
    old, new = Training(config, 1), Training(config, 1)
    old.method.end_task(old.run)
    state = old.method.state_dict()
    assert all(isinstance(value, Tensor) and not value.requires_grad for value in state.values())
    fresh: Method = build(config, CPU).method
    fresh.load_state_dict({name: value.clone() for name, value in state.items()})
    again = fresh.state_dict()  # a checkpoint may be written before a task is started
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    new.parts.model.load_state_dict(old.parts.model.state_dict())
    new.method, new.take = fresh, TrainingStep(new.parts.model, fresh, CPU, "off")
    for training in (old, new):
        training.generator.manual_seed(1)
        training.start(2)
    torch.testing.assert_close(*(training.step()[1].parts for training in (old, new)), rtol=0, atol=0)


@EachMethod
def test_smoothed_labels_reach_all_its_losses_or_are_refused(
    method: str, words: Callable[[str, str], list[str]], compose: Compose
) -> None:
    plain, smooth = (Training(compose(*words(method, "one_head")), 1) for _ in range(2))
    smooth.run.label_smoothing = 0.3
    for training in (plain, smooth):
        training.generator.manual_seed(1)
    before, found = (training.step()[1].parts for training in (plain, smooth))
    taken = "label_smoothing" not in smooth.method.unfit
    assert all((before[name] != found[name]) == taken for name in ("loss", "replay") if name in found)


@EachMethod
def test_the_data_budget_is_kept(method: str, words: Callable[[str, str], list[str]], compose: Compose) -> None:
    """No more images are stored than `size` allows, and none where there is no such key."""
    training = Training(compose(*words(method, "one_head")), 2)
    for _ in range(4):
        training.step()
        stored, size = training.method.stored_images, getattr(training.method, "size", 0)
        assert 0 <= stored <= size
        assert bool(stored) == bool(size)
        held = [len(value) for value in training.method.state_dict().values() if value.ndim > 3]
        assert all(number <= size + 1 for number in held)  # one place is for what is not stored


def test_separate_networks_have_nothing_in_common(words: Callable[[str, str], list[str]], compose: Compose) -> None:
    """A task's training moves its own network alone, and all start alike; a model that shares something is refused."""
    training = Training(compose(*words("separate", "heads")), 1)
    own = training.parts.model.hnet.task_parameters()[0]
    before = own.detach().clone()
    training.step()
    moved = (own.detach() != before).any(1)
    assert moved.tolist() == [task == 1 for task in range(len(own))]
    torch.testing.assert_close(before[2], before[1], rtol=0, atol=0)
    for model, message in (("hypernetwork", "allowed"), ("heads", "in common; allowed: hnet=direct")):
        changed = ["hnet.per_task=null"] if model == "heads" else []
        with pytest.raises(ArgumentError, match=message):
            Training(compose(*words("finetune", model), "method=separate", *changed), 0)
