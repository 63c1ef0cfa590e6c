"""Sequences whose tasks differ in their number of classes: 2, 3 and 5 here, under every method, head and scenario."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import hnetcl
from hnetcl.build import Parts, build
from hnetcl.cli.jobs import train
from hnetcl.config import Config
from hnetcl.errors import ArgumentError
from hnetcl.inference import candidates, compare_tasks
from hnetcl.methods import Run
from hnetcl.registry import names, options
from hnetcl.tasks.memory import Memory
from hnetcl.training import Trainer
from hnetcl.training.evaluation import Protocol, accuracies

COUNTS = [2, 3, 5]
MODELS = {
    "heads": ["hnet=direct", "scenario=task"],
    "shared": ["hnet=direct", "scenario=domain"],
    "all": ["hnet=direct", "scenario=class"],
    "hypernetwork": ["hnet=chunked", "scenario=class"],
    "hypernetwork_domain": ["hnet=chunked", "scenario=domain"],
    "hypernetwork_all": ["hnet=chunked", "scenario=class", "head=all"],
}
CPU = torch.device("cpu")
Compose = Callable[..., Config]
EachModel = pytest.mark.parametrize("model", MODELS)


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of 8 x 8 images, each with a bright column or row of its own."""
    generator, root = torch.Generator().manual_seed(0), tmp_path_factory.mktemp("ten")
    tensors: dict[str, Tensor] = {}
    for split, number in (("train", 20), ("test", 8)):
        labels = torch.arange(10).repeat(number)
        images = torch.randint(0, 80, (len(labels), 1, 8, 8), generator=generator, dtype=torch.uint8)
        for image, label in zip(images, labels.tolist(), strict=True):
            (image[0, :, label] if label < 8 else image[0, label - 7]).add_(150)
        tensors |= {f"{split}_images": images, f"{split}_labels": labels}
    save_file(tensors, root / "ten.safetensors")
    return root


@pytest.fixture
def parts(ten: Path, compose: Compose) -> Callable[..., tuple[Config, Parts]]:
    def call(model: str, *own: str) -> tuple[Config, Parts]:
        torch.manual_seed(0)
        tasks = [f"data.root={ten}", "task.dataset=ten", "task.num_tasks=3", f"task.classes_per_task={COUNTS}"]
        small = ["task.val_size=10", "net.hidden=[8]", "bn=real"]
        hnet = ["hnet.hidden=[8]", "hnet.embedding_dim=4"] if MODELS[model][0] != "hnet=direct" else []
        config = compose(*tasks, *small, *MODELS[model], *hnet, *own)
        return config, build(config, CPU)

    return call


def trainer(config: Config, parts: Parts, **how: Any) -> Trainer:
    how = {"steps": 3, "batch_size": 8, "compile": "off", "statistics": "none", **how}
    generator = torch.Generator().manual_seed(0)
    told = config.scenario, config.inference
    return Trainer(parts.model, parts.sequence, parts.method, parts.optimizer, generator, *told, **how)


@pytest.mark.parametrize(
    ("model", "method"),
    [  # networks of their own for all tasks are no hypernetwork's; iCaRL wants one for all of them
        (model, method)
        for model in ("heads", "all", "hypernetwork")
        for method in names("method")
        if model != "hypernetwork" or method not in ("separate", "icarl")
    ],
)
def test_every_method_trains_them(method: str, model: str, parts: Callable[..., tuple[Config, Parts]]) -> None:
    small = {"size": 30, "samples": 10, "fisher_samples": 10}
    own = [f"method.{key}={value}" for key, value in small.items() if key in options("method", method)]
    own += ["method.importance=fisher"] if method == "output_regularizer" else []
    config, made = parts(model, f"method={method}", *own)
    result = trainer(config, made).fit()
    assert result.matrix.isfinite().sum() >= 6
    assert all(value.isfinite().all() for value in made.model.state_dict().values() if value.is_floating_point())


@EachModel
def test_logits_that_a_loss_looks_at(model: str, parts: Callable[..., tuple[Config, Parts]]) -> None:
    _, made = parts(model)
    sequence = made.sequence
    assert sequence.class_counts == (2, 3, 5)
    assert sequence.num_outputs == (10 if sequence.head == "all" else 5)
    labels = torch.tensor([0, 1, 2, 4, 5, 9])
    if sequence.head == "all":
        assert [sequence.first_output(t) for t in range(3)] == [0, 2, 5]
        seen, current = sequence.active("seen", 1, labels), sequence.active("current", 2, labels)
        assert seen is not None
        assert current is not None
        assert seen.tolist() == [True] * 5 + [False] * 5
        tasks = [0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
        assert current.tolist() == [[task == tasks[label] for task in tasks] for label in labels.tolist()]
        return
    assert [sequence.first_output(t) for t in range(3)] == [0, 0, 0]
    for task, count in enumerate(COUNTS):
        own = sequence.active("seen", 2, labels, torch.tensor(task))
        assert (own is None) == (sequence.head == "shared")
        assert own is None or own.tolist() == [k < count for k in range(5)]


def reference(made: Parts, scenario: str, task: int, seen: int) -> Tensor:
    """Whether each test image is classified right, in plain words; tasks are told apart by entropy."""
    sequence, model = made.sequence, made.model.eval()
    data, first = sequence[task], [0, 2, 5]
    x, labels = data.preprocess(data.test.images), data.test.labels

    def logits(t: int) -> Tensor:
        found: Tensor = model(x, t)
        if sequence.head == "all":
            return found[:, first[t] : first[t] + COUNTS[t]]
        return found[:, : COUNTS[t]] if sequence.head == "task" else found

    with torch.no_grad():
        if scenario == "task" or (sequence.head == "shared" and not model.is_conditioned):
            return logits(task).argmax(1) == labels
        if sequence.head == "all" and not model.is_conditioned:
            best = model(x, task)[:, : sum(COUNTS[:seen])].argmax(1)
            found = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2, 2])[best]
            chosen = best - torch.tensor(first)[found]
        else:
            every = [logits(t) for t in range(seen)]
            entropies = torch.stack([-(e.softmax(1) * e.log_softmax(1)).sum(1) for e in every])
            found = entropies.argmin(0)
            chosen = torch.stack([every[t][n].argmax() for n, t in enumerate(found.tolist())])
    right: Tensor = chosen == labels
    return right & (found == task) if scenario == "class" else right


@EachModel
def test_accuracies_are_those_of_plain_code(model: str, parts: Callable[..., tuple[Config, Parts]]) -> None:
    config, made = parts(model, "method=finetune" if model != "hypernetwork" else "method=output_regularizer")
    trainer(config, made, steps=20).fit()
    for scenario in ("task", "domain", "class"):
        if scenario == "class" and made.sequence.head != "all" and not made.model.is_conditioned:
            continue
        found = accuracies(made.model, made.sequence, Protocol(scenario, batch_size=7, head=made.sequence.head))
        expected = [float(reference(made, scenario, t, 3).double().mean()) for t in range(3)]
        assert found.right.tolist() == pytest.approx(expected, abs=1e-12)
    assert found.right.sum() > 0


@pytest.mark.parametrize(
    ("criterion", "model"),
    [
        *product(sorted(set(names("inference")) - {"statistics"}), ["hypernetwork", "hypernetwork_all"]),
        ("entropy", "hypernetwork_domain"),
    ],
)
def test_tasks_with_fewer_classes_are_inferred(criterion: str, model: str, parts: Callable[..., tuple[Config, Parts]]) -> None:
    """Scores are finite, and logits of classes that a task has not are never chosen."""
    config, made = parts(model, f"inference={criterion}", "method=output_regularizer")
    trainer(config, made).fit()
    outputs = Protocol(head=made.sequence.head, counts=COUNTS).outputs(3, 5)
    x = made.sequence[2].preprocess(made.sequence[2].test.images)
    with torch.no_grad():
        tasks, logits = compare_tasks(made.model.eval(), x, candidates(made.model, criterion, 3, outputs))
    assert set(tasks.tolist()) <= {0, 1, 2}
    for t, count in enumerate(COUNTS):
        assert logits[t, :, :count].isfinite().all()
        assert logits[t, :, count:].isneginf().all()


def test_statistics_recognise_them(parts: Callable[..., tuple[Config, Parts]]) -> None:
    """A task with fewer classes keeps the rows of its own classes, and no mean that none of its images has."""
    config, made = parts("hypernetwork", "inference=statistics", "method=output_regularizer", "optimizer.lr=0.01")
    result = trainer(config, made, steps=60).fit()
    means = made.model.recognizer.get_buffer(next(n for n, _ in made.model.recognizer.named_buffers() if "means" in n))
    assert torch.equal(means[0, 2:], means[0, :1].expand(3, -1))
    assert float(result.known[2].nanmean()) > 0.5


def test_logits_of_no_class_learn_nothing(parts: Callable[..., tuple[Config, Parts]]) -> None:
    """With heads per task, those that a task has not get no gradient: neither from its batches, nor from replayed ones."""
    _, made = parts("heads", "method=replay", "method.size=30")
    run = Run(made.model, 2, made.sequence, made.optimizer.make(made.model, 1)[0], torch.Generator().manual_seed(0))
    for task, count in enumerate(COUNTS):
        run.task = task
        made.method.start_task(run)
        data = made.sequence[task]
        x, y = data.preprocess(data.train.images[:8]), data.train.labels[:8]
        inputs = made.method.inputs(run, lambda x=x, y=y: (x, y))
        losses = made.method.loss(made.model.train(), inputs)
        own = made.model.hnet.task_parameters()
        weight, bias = _heads(torch.autograd.grad(losses.parts["loss"], own, retain_graph=True)[0])
        assert weight[task, :count].abs().sum() > 0
        assert not weight[task, count:].any()
        assert not bias[task, count:].any()
        if task:
            old = int(inputs.tensors["memory.task"])
            weight, bias = _heads(torch.autograd.grad(losses.parts["replay"], own)[0])
            assert not weight[old, COUNTS[old] :].any()
            assert not bias[old, COUNTS[old] :].any()
            assert int(inputs.tensors["memory.y"].max()) < COUNTS[old]
        made.method.after_step(run, inputs, losses)


def _heads(own: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [3, 5, 8] and bias [3, 5] of the heads, of what a task has for itself."""
    return own[:, :40].reshape(3, 5, 8), own[:, 40:]


def test_a_memory_of_uneven_tasks_has_equal_shares() -> None:
    generator, memory = torch.Generator().manual_seed(0), Memory(30, COUNTS)
    for task, (first, count) in enumerate(zip([0, 2, 5], COUNTS, strict=True)):
        memory.open(task + 1)
        classes = torch.arange(first, first + count).repeat(40)
        memory.add(classes[:, None].float(), classes - first, torch.zeros(len(classes), 1), classes, generator)
    assert memory.share == 3
    assert memory.tensors["x"][:30, 0].tolist() == [float(c) for c in range(10) for _ in range(3)]
    some = memory.draw(50, torch.arange(10) >= 5, generator)
    assert set(some.x[:, 0].tolist()) == {5.0, 6.0, 7.0, 8.0, 9.0}
    assert torch.equal(some.y, some.x[:, 0].long() - 5)


@pytest.mark.parametrize("model", ["hypernetwork", "all"])
def test_they_are_loaded_from_their_directory(model: str, parts: Callable[..., tuple[Config, Parts]], tmp_path: Path) -> None:
    config, made = parts(model, f"run.dir={tmp_path}", "observers=[]", "trainer.steps=1", "trainer.batch_size=8")
    train(config)
    assert hnetcl.load(tmp_path)(torch.randn(2, 1, 8, 8), 2).shape == (2, made.sequence.num_outputs)


def test_one_network_with_heads_per_task_is_refused(parts: Callable[..., tuple[Config, Parts]]) -> None:
    config, made = parts("heads", "hnet.per_task=[]", "bn.rows=shared", "method=finetune")
    with pytest.raises(ArgumentError, match=r"head=task: tasks have logits of their own, but .*allowed: all, shared"):
        trainer(config, made)
