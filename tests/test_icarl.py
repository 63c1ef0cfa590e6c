"""iCaRL: which exemplars it keeps, what it learns from, and how it classifies."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hnetcl
from hnetcl.build import Parts, build
from hnetcl.cli.jobs import evaluate, train
from hnetcl.config import Config, EvaluationConfig
from hnetcl.errors import ArgumentError
from hnetcl.inference import Classifier, NearestMean
from hnetcl.methods import Inputs, Method, Run
from hnetcl.methods.icarl import ICaRL, herded
from hnetcl.model import HyperModel
from hnetcl.registry import register
from hnetcl.tasks import Batches
from hnetcl.training import Protocol, RunDirectory, accuracies

CPU = torch.device("cpu")
Compose = Callable[..., Config]
SMALL = ["method=icarl", "bn=real", "trainer.steps=10", "trainer.batch_size=16", "observers=[]", "trainer.threads=1"]


@pytest.fixture
def small(tiny: list[str]) -> list[str]:
    left_out = ("hnet.", "trainer.steps", "trainer.batch_size")
    return [*(word for word in tiny if not word.startswith(left_out)), *SMALL, "method.size=31"]


def test_herding_is_the_greedy_choice() -> None:
    """Against algorithm 4 of Rebuffi et al. 2017 as it is written."""
    features = F.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    mean, chosen = F.normalize(features.mean(0), dim=0), list[int]()
    for count in range(1, 16):
        own = [k for k in range(40) if k not in chosen]
        apart = [(mean - (features[chosen].sum(0) + features[k]) / count).norm() for k in own]
        chosen.append(own[int(torch.stack(apart).argmin())])
    assert herded(features, 15).tolist() == chosen
    assert sorted(herded(features, 99).tolist()) == list(range(40))


def trained(parts: Parts) -> list[tuple[list[int], list[bytes]]]:
    """Trains all tasks without a trainer; after each how many exemplars of each class there are, and these."""
    torch.manual_seed(0)
    model, method, sequence = parts.model, parts.method, parts.sequence
    generator, after = torch.Generator().manual_seed(0), []
    assert isinstance(method, ICaRL)
    for task in range(len(sequence)):
        optimizer, _ = parts.optimizer.make(model.train(), 6)
        run = Run(model, task, sequence, optimizer, generator)
        batches = Batches(sequence[task], 16, generator, sequence.first_output(task))
        method.start_task(run)
        for _ in range(6):
            inputs = method.inputs(run, lambda of=None: batches.draw())  # noqa: B023
            losses = method.loss(model, inputs)
            check_loss(method, model, inputs, losses.total)
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
        method.end_task(run)
        images = [image.numpy().tobytes() for image in method.memory.images]
        after.append((method.memory.held(sequence.first_class(task + 1)), images))
    return after


def check_loss(method: ICaRL, model: HyperModel, inputs: Inputs, total: Tensor) -> None:
    """Against the loss as iCaRL's authors and van de Ven write it: one binary target for each image and class so far."""
    known = inputs.active
    assert known is not None
    with torch.no_grad():
        logits = model(inputs.x, inputs.task)
        targets = F.one_hot(inputs.y, logits.shape[1]).float()
        if "old" in inputs.tensors:
            old = int(inputs.tensors["old"].sum())
            targets[:, :old] = inputs.tensors["before"][:, :old]
        value = F.binary_cross_entropy_with_logits(logits[:, known], targets[:, known], reduction="none").sum(1).mean()
    torch.testing.assert_close(total.detach(), value)


@pytest.mark.parametrize("shares", ["seen", "all"])
def test_exemplars_and_means(shares: str, small: list[str], compose: Compose) -> None:
    """Shares shrink by the last ones; means are those of the exemplars under the network as it is; the nearest one is taken."""
    parts = build(compose(*small, "scenario=class", f"method.shares={shares}", "net.norm=none"), CPU)
    after = trained(parts)
    model, method, sequence = parts.model, parts.method, parts.sequence
    assert isinstance(method, ICaRL)
    for task, (counts, images) in enumerate(after):
        assert counts == [31 // (2 * (task + 1) if shares == "seen" else 6)] * (2 * (task + 1))
        assert method.stored_images <= 31
        if task:
            before = after[task - 1]
            own, was = (torch.tensor([0, *each[0]]).cumsum(0).tolist() for each in (after[task], before))
            for k in range(2 * task):
                assert images[own[k] : own[k + 1]] == before[1][was[k] : was[k] + counts[k]]
    net = nn.Sequential(model.net.get_submodule("body")).eval()
    written = model.hnet(0)
    with torch.no_grad():
        for name, value in net.named_parameters():
            value.copy_(written[f"body.{name.removeprefix('0.')}"].reshape(value.shape))

        def features(images: Tensor, task: int) -> Tensor:
            return F.normalize(net(sequence[task].preprocess(images)))

        stored, classes = method.memory.images, method.memory.classes
        means = torch.stack([F.normalize(features(stored[classes == k], k // 2).mean(0), dim=0) for k in range(6)])
        torch.testing.assert_close(model.classifier.means, means)
        for number, data in enumerate(sequence.tasks):
            apart = torch.cdist(features(data.test.images, number), means)
            torch.testing.assert_close(
                -model.eval().scores(data.preprocess(data.test.images), 0), apart**2, rtol=1e-3, atol=1e-4
            )
            for scenario, chosen in (
                ("class", apart.argmin(1) - 2 * number),
                ("domain", apart.argmin(1) % 2),
                ("task", apart[:, 2 * number : 2 * number + 2].argmin(1)),
            ):
                right = float((chosen == data.test.labels).double().mean())
                found = accuracies(model, sequence, Protocol(scenario, head="all"), [number])
                assert float(found.right) == pytest.approx(right)


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_a_reloaded_run_classifies_alike(scenario: str, small: list[str], compose: Compose, tmp_path: Path) -> None:
    """`evaluate` finds the recorded numbers, and `load` gives the same scores; a plain module is refused."""
    path = tmp_path / "run"
    train(compose(*small, f"scenario={scenario}", f"run.dir={path}"))
    values = {"run": str(path), "task": None, "stats": "own", "scenario": None, "inference": None}
    found = evaluate(EvaluationConfig(**values, imports=[], device="cpu", data={"root": None}))  # type: ignore[arg-type]
    assert found == RunDirectory(path).read_accuracy()[-1]
    model, sequence = hnetcl.load(path), build(compose(*small, f"scenario={scenario}"), CPU).sequence
    right = [
        (model.scores(task.preprocess(task.test.images), 0)[:, 2 * t : 2 * t + 2].argmax(1) == task.test.labels).double().mean()
        for t, task in enumerate(sequence.tasks)
    ]
    assert scenario != "task" or torch.stack(right).tolist() == pytest.approx(found)
    with pytest.raises(ArgumentError, match=r"plain.*NearestMean.*allowed: model\.scores"):
        model.plain(0)


@pytest.mark.usefixtures("users_parts")
def test_a_method_of_ones_own_classifies_otherwise(small: list[str], compose: Compose, tmp_path: Path) -> None:
    """Here by the smallest logit: what was right is wrong, with two classes and the task told."""

    class Smallest(Classifier):
        opened = True

        def open_as(self, tensors: object) -> None:
            assert not tensors

        def scores(self, inputs: object, logits: Tensor) -> Tensor:
            return -logits

    class Contrary(Method):
        def classifier(self) -> Classifier:
            return Smallest()

    register("method", "contrary")(Contrary)
    own = [word for word in small if not word.startswith("method")]
    paths = {name: tmp_path / name for name in ("contrary", "finetune")}
    for name, path in paths.items():
        train(compose(*own, "hnet=direct", f"method={name}", "imports=[]", f"run.dir={path}"))
    found = [torch.tensor(RunDirectory(path).read_accuracy()[1:]) for path in paths.values()]
    torch.testing.assert_close(found[0], 1 - found[1], equal_nan=True)


def test_what_it_does_not_take_is_refused(small: list[str], compose: Compose) -> None:
    for words, message in (
        (["scenario=task", "bn.rows=task"], "same for all tasks"),
        (["hnet=chunked"], "same for all tasks"),
        (["scenario=domain", "head=shared"], "logit for each class"),
        (["method.size=5"], "at least 6"),
    ):
        with pytest.raises(ArgumentError, match=message):
            build(compose(*small, *words), CPU)
    model = build(compose(*[w for w in small if not w.startswith("method")], "method=finetune", "hnet=chunked"), CPU).model
    model.classifier = NearestMean()
    sequence = build(compose(*small), CPU).sequence
    with pytest.raises(ArgumentError, match="same for all tasks"):
        accuracies(model, sequence, Protocol("class"))
