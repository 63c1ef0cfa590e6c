"""Tasks recognised by the statistics of what layers are given."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import hnetcl
from hnetcl.cli.jobs import evaluate, train
from hnetcl.cli.reload import load_weights
from hnetcl.config import Config, parse_evaluation
from hnetcl.errors import ArgumentError
from hnetcl.inference import Recognizer, add_recognizer, candidates, infer_tasks, teach
from hnetcl.inference.gaussians import (
    ClassMoments,
    leading,
    loaded,
    packed,
    squared_distances,
    unpacked,
    whitening,
    whitening_of_leading,
)
from hnetcl.inference.inputs import INPUT, layer_names, watched
from hnetcl.model import HyperModel
from hnetcl.registry import register
from hnetcl.tasks import Images, TaskSequence, load_images, split_sequence
from hnetcl.training import Observer, RunDirectory, RunStart

Compose = Callable[..., Config]


def spread(width: int) -> torch.Tensor:
    """A covariance [width, width]."""
    root = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(width))
    return root @ root.T / width + 0.1 * torch.eye(width, dtype=torch.float64)


def test_moments_are_those_of_all_features_in_any_batches() -> None:
    x, y = 5 + torch.randn(60, 4), torch.arange(60) % 3
    means = torch.stack([x[y == k].mean(0) for k in range(3)])
    apart = x - means[y]
    for size in (1, 7, 60):
        moments = ClassMoments(4)
        for some, own in zip(x.split(size), y.split(size), strict=True):
            moments.add(some, own)
        torch.testing.assert_close(moments.means()[:3].float(), means)
        torch.testing.assert_close(moments.means()[3].float(), x.mean(0))  # a class that the task has not
        torch.testing.assert_close(moments.covariance().float(), apart.T @ apart / 60)


@pytest.mark.parametrize("width", [1, 2, 9])
def test_distances_are_mahalanobis(width: int) -> None:
    covariance, means, x = spread(width), torch.randn(3, width).double(), 3 * torch.randn(20, width).double()
    apart = x[:, None] - means
    expected = torch.einsum("nkd,de,nke->nk", apart, torch.linalg.inv(covariance), apart).amin(1)
    torch.testing.assert_close(squared_distances(x, means, whitening(covariance)), expected)
    torch.testing.assert_close(unpacked(packed(covariance)), covariance)
    if width > 1:  # all directions are all of the covariance
        whiten = whitening_of_leading(*leading(covariance, width))
        torch.testing.assert_close(squared_distances(x, means, whiten), expected)


def test_leading_directions_leave_the_mean_of_the_other_variances() -> None:
    covariance = spread(7)
    directions, residual = leading(covariance, 3)
    values, vectors = torch.linalg.eigh(covariance)
    values[:-3] = values[:-3].mean()
    rebuilt = vectors @ torch.diag(values) @ vectors.T
    whiten = whitening_of_leading(directions, residual)
    torch.testing.assert_close(torch.linalg.inv(whiten.T @ whiten), rebuilt)
    torch.testing.assert_close(rebuilt.trace(), covariance.trace())


def test_features_without_variance_have_finite_distances() -> None:
    whiten = whitening(loaded(torch.zeros(3, 3, dtype=torch.float64), 0.01))
    assert squared_distances(torch.zeros(2, 3).double(), torch.zeros(1, 3).double(), whiten).isfinite().all()


def test_rounding_takes_no_variance_below_the_ridge() -> None:
    """Fewer features than dimensions, kept in float32: what is lost is the rounding alone."""
    ridge, x = 1e-6, torch.randn(2, 300, dtype=torch.float64)
    covariance = loaded(torch.cov(x.T), ridge)
    kept = covariance.float().double()
    assert torch.linalg.cholesky_ex(kept)[1]
    scales = torch.linalg.svdvals(whitening(kept, ridge)).square().reciprocal()
    torch.testing.assert_close(scales.amin(), torch.linalg.eigvalsh(covariance).amin(), rtol=1e-5, atol=0)
    torch.testing.assert_close(scales.amax(), torch.linalg.eigvalsh(covariance).amax())


def test_layers_are_watched_in_the_order_in_which_they_run() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.again, self.conv = nn.Linear(3, 2), nn.Linear(3, 3), nn.Conv2d(2, 3, 3)
            self.unused = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x).mean((2, 3))
            logits: torch.Tensor = self.last(self.again(self.again(x)))
            return logits

    net, x = Net(), torch.randn(5, 2, 6, 6)
    with watched(net, [INPUT, *layer_names(net)]) as found:
        net(x)
    first = net.conv(x).mean((2, 3))
    expected = {
        INPUT: x.flatten(1),
        "conv": x.mean((2, 3)),
        "again": (first + net.again(first)) / 2,
        "last": net.again(net.again(first)),
    }
    assert list(found) == list(expected)
    torch.testing.assert_close(found, expected)
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.fixture
def sequence(data_root: Path) -> TaskSequence:
    def load(name: str) -> Images:
        return load_images(name, data_root)

    return split_sequence(load, dataset="tiny", num_tasks=3, val_size=20)


@pytest.fixture
def model(sequence: TaskSequence) -> HyperModel:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(256, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    model = hnetcl.wrap(net, 3, hnet="full", hidden=[5])
    for task, data in enumerate(sequence.tasks):
        for images in data.train.images.split(20):
            model(data.preprocess(images), task)
    return model.eval()


@pytest.mark.parametrize("values", [{}, {"rank": 2}, {"layers": [INPUT]}, {"layers": ["1"], "entropy": 1.0}])
def test_each_sample_is_judged_for_itself(values: dict[str, Any], model: HyperModel, sequence: TaskSequence) -> None:
    """Rows learned anew are the same, tasks that were not seen don't come into question, and a new task has a row."""
    criterion = {"name": "statistics", **values}
    x = torch.cat([data.preprocess(data.test.images[:6]) for data in sequence.tasks])
    teach(model, sequence, criterion, 16)
    tasks, logits = infer_tasks(model, x, candidates(model, criterion))
    assert (tasks == torch.arange(3).repeat_interleave(6)).float().mean() > 0.8
    for sample, task, expected in zip(x.split(1), tasks.tolist(), logits, strict=True):
        assert infer_tasks(model, sample, candidates(model, criterion))[0].tolist() == [task]
        torch.testing.assert_close(model(sample, task)[0], expected)
    few, _ = infer_tasks(model, x, candidates(model, criterion, seen=2))
    again = deepcopy(model)
    add_recognizer(again, criterion)
    again.load_state_dict(model.state_dict())
    assert torch.equal(infer_tasks(again, x, candidates(again, criterion))[0], tasks)
    assert few.max() <= 1
    model.add_task()
    assert all(len(value) == 4 for value in model.recognizer.buffers())
    tasks, _ = infer_tasks(model, x, candidates(model, criterion))
    assert len(tasks) == 18
    assert tasks.double().isfinite().all()
    expected_bytes = {"{}": 12 * 2 + 8 * 2 + 12 * 13 // 2 + 8 * 9 // 2 + 2}
    if not values:
        assert model.recognizer.kept_bytes == 4 * 4 * expected_bytes["{}"]


def test_refused(model: HyperModel, sequence: TaskSequence, data_root: Path) -> None:
    with pytest.raises(ArgumentError, match="inference=statistics: the model has learned nothing"):
        candidates(model, "statistics")
    with pytest.raises(ArgumentError, match=r"layers=\['head'\]: 'head' matches none of input, 1, 4, 6"):
        teach(model, sequence, {"name": "statistics", "layers": ["head"]}, 16)
    with pytest.raises(ArgumentError, match="layers=None: Sequential has no layer that runs after a first; allowed: input, "):
        teach(
            hnetcl.wrap(nn.Sequential(nn.Flatten(), nn.Linear(256, 2)), 3, hnet="full", hidden=[5]), sequence, "statistics", 16
        )
    teach(model, sequence, {"name": "statistics", "rank": 2}, 16)
    with pytest.raises(ArgumentError, match="rank=3: the model has learned to recognise tasks with rank=2; allowed: that"):
        candidates(model, {"name": "statistics", "rank": 3})
    with pytest.raises(ArgumentError, match="inference=None: allowed: "):
        candidates(model, {"rank": 3})
    none = split_sequence(lambda name: load_images(name, data_root), dataset="tiny", num_tasks=3, val_size=0)
    with pytest.raises(ArgumentError, match="needs held-out images of every task, and task 0 has 0"):
        teach(model, none, "statistics", 16)


MODELS = {
    "quaternion": ["bn=quaternion"],
    "complex-lenet": ["bn=complex", "net=lenet", "net.channels=[4,4]", "inference.rank=2"],
    "batch": ["bn=real", "bn.stats=batch"],
    "generated": ["bn=real", "bn.stats=generated"],
    "virtual": ["bn=virtual", "bn.algebra=real"],
    "fused": ["bn=fused", "net=lenet", "net.channels=[4,4]", "bn.algebra=real"],
    "none": ["bn=real", "net.norm=none", "scenario=domain"],
    "rows": ["bn=real", "method=finetune", "bn.rows=task"],
}


@pytest.mark.parametrize("name", MODELS)
def test_a_run_reloads_what_it_recognises_tasks_by(name: str, tiny: list[str], compose: Compose, tmp_path: Path) -> None:
    """For every algebra, mode of statistics and scenario: the same numbers from the directory, and from Python."""
    small = [word for word in tiny if not word.startswith("net.hidden") or "lenet" not in str(MODELS[name])]
    small = [word for word in small if name != "rows" or not word.startswith("hnet.")]
    own = ["scenario=class", "inference=statistics", *MODELS[name], "trainer.steps=20", "observers=[]", f"run.dir={tmp_path}"]
    train(compose(*small, *own))
    recorded = [float(v) for v in (tmp_path / "accuracy.csv").read_text().splitlines()[-1].split(",")[1:]]
    values: dict[str, Any] = {
        "run": str(tmp_path),
        "task": None,
        "stats": "own",
        "scenario": None,
        "imports": [],
        "device": "cpu",
    }
    assert evaluate(parse_evaluation({**values, "inference": None, "data": {"root": None}})) == recorded
    model = hnetcl.load(tmp_path)
    assert model.recognizer.kept_bytes > 0
    assert len(model.recognizer.watches) >= 1
    other = {"name": "statistics", "rank": 3}
    found = evaluate(parse_evaluation({**values, "inference": other, "split": "val", "data": {"root": None}}))
    assert len(found) == 3
    assert all(0 <= each <= 1 for each in found)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("centre", lambda rows: rows * torch.nan, "recognizer.centre is not finite"),
        ("spread", torch.zeros_like, "recognizer.spread is not positive"),
        ("centre", lambda rows: rows[:2], r"recognizer.centre is \[2\], but there are 3 tasks"),
    ],
)
def test_rows_of_no_model_are_told(name: str, spoil: Any, message: str, model: HyperModel, sequence: TaskSequence) -> None:
    teach(model, sequence, {"name": "statistics", "rank": 1}, 60)
    model.recognizer.check_rows(model)
    model.recognizer.register_buffer(name, spoil(model.recognizer.get_buffer(name)))
    with pytest.raises(ValueError, match=message):
        model.recognizer.check_rows(model)


def test_a_reload_looks_at_the_rows(model: HyperModel, sequence: TaskSequence, tmp_path: Path) -> None:
    """Those of a file that is whole, but of no trained model."""
    teach(model, sequence, {"name": "statistics", "rank": 1}, 60)
    tensors = {name: value.clone() for name, value in model.saved_tensors().items()}
    fresh = deepcopy(model)
    load_weights(fresh, tensors, RunDirectory(tmp_path))
    tensors["recognizer.spread"].zero_()
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged \(recognizer\.spread is not positive"):
        load_weights(fresh, tensors, RunDirectory(tmp_path))


class Stops(Observer):
    """Ends a run before its last task."""

    def on_start(self, start: RunStart) -> None:
        self.done = start.done

    def on_task_start(self, task: int, steps: int, steps_before: int) -> None:
        if task == 2 and not self.done:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("users_parts")
def test_a_resumed_run_is_the_undisturbed_one(tiny: list[str], compose: Compose, tmp_path: Path) -> None:
    own = [*tiny, "scenario=class", "inference=statistics", "trainer.steps=20"]
    train(compose(*own, "observers=[]", f"run.dir={tmp_path / 'whole'}"))
    register("observer", "stops")(Stops)
    with pytest.raises(KeyboardInterrupt):
        train(compose(*own, "observers=[stops]", f"run.dir={tmp_path / 'halves'}"))
    train(compose(*own, "observers=[stops]", f"run.dir={tmp_path / 'halves'}", "resume=true"))
    first, second = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "halves"))
    assert any(name.startswith("recognizer.") for name in first)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("users_parts")
def test_a_recognizer_of_ones_own(tiny: list[str], compose: Compose, tmp_path: Path) -> None:
    """Keys, rows and files are as those of the package's own."""

    @register("inference", "brightness")
    class Brightness(Recognizer):
        """By the mean pixel."""

        def __init__(self, *, factor: float = 1.0) -> None:
            super().__init__()
            self.factor, self.watches = factor, (INPUT,)

        def open(self, model: Any, x: torch.Tensor, classes: int) -> None:
            self.opened = True
            self.register_buffer("mean", torch.zeros(model.hnet.num_tasks))

        def open_as(self, tensors: Any) -> None:
            self.opened = True
            self.register_buffer("mean", torch.zeros_like(tensors["mean"]))

        def learn(self, model: Any, task: int, data: Any, batch_size: int) -> None:
            self.get_buffer("mean")[task] = data.preprocess(data.train.images).mean()

        def scorer(self, task: int) -> Any:
            mean = self.get_buffer("mean")[task]
            return lambda inputs, logits: -self.factor * (inputs[INPUT].mean(1) - mean).abs()

    own = ["scenario=class", "inference=brightness", "inference.factor=2.0", "trainer.steps=5", "observers=[]"]
    train(compose(*tiny, *own, f"run.dir={tmp_path}"))
    assert hnetcl.load(tmp_path).recognizer.get_buffer("mean").count_nonzero() == 3
