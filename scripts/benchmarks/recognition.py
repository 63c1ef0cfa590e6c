"""Ways to recognise the task of an image in a finished run, with the bytes that each keeps.

Contenders are statistics/full and statistics/RANK (leading directions of each covariance), statistics+entropy/..., the same
Gaussians on raw pixels (pixels/...), entropy, which keeps nothing, the task told (told), and a linear discriminant: class means
and one covariance of what the first task's network gives to its last layer (discriminant). Accuracy is that of scenario=class.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.contenders import Contender, Field, Report
from benchmarks.example import numbers
from hnetcl.build import build
from hnetcl.cli.reload import load_weights, saved_config, whole_run
from hnetcl.inference import Criterion, add_recognizer, teach
from hnetcl.inference.gaussians import ClassMoments, loaded, squared_distances, whitening
from hnetcl.inference.inputs import INPUT, watched
from hnetcl.model import HyperModel
from hnetcl.modes import evaluation_mode
from hnetcl.tasks import Split, TaskSequence
from hnetcl.training import Protocol, RunDirectory, accuracies, images_at_once

SPLITS: tuple[Literal["val", "test"], ...] = ("val", "test")
RIDGE = 0.01
Answer = Callable[[], tuple[list[float], int]]
"""Accuracies of `SPLITS`, and bytes kept."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", help="the directory of a finished run")
    parser.add_argument("--ranks", default="4,16,32,128", help="numbers of directions (default %(default)s)")
    parser.add_argument("--entropy", type=float, default=1.0, help="weight of the entropy (default %(default)s)")


def field(arguments: Namespace, device: torch.device) -> Field:
    """Everything that can be asked of the run.

    Raises:
        ArgumentError: there is no such run, or it is damaged.
    """
    directory = RunDirectory(arguments.run)
    tensors, config = whole_run(directory, arguments.run), saved_config(directory, "run")
    parts = build(config, device)
    load_weights(parts.model, tensors, directory)
    ask = Asked(parts.model, parts.sequence)
    ranks: list[int | None] = [None, *numbers(arguments, "ranks", 1)]
    kinds: dict[str, dict[str, Any]] = {
        "statistics": {},
        "statistics+entropy": {"entropy": arguments.entropy},
        "pixels": {"layers": [INPUT]},
    }
    contenders = [
        Contender("told", partial(ask.scenario, "task", "entropy")),
        Contender("entropy", partial(ask.scenario, "class", "entropy")),
    ]
    for kind, values in kinds.items():
        for rank in ranks:
            criterion = {"name": "statistics", "ridge": RIDGE, "rank": rank, **values}
            contenders.append(Contender(f"{kind}/{rank or 'full'}", partial(ask.scenario, "class", criterion)))
    contenders.append(Contender("discriminant", ask.discriminant))
    settings = {"run": arguments.run, "tasks": len(parts.sequence), "entropy": arguments.entropy}
    return Field(contenders, settings, partial(answers, image=parts.sequence[0].train.images[0].numel()))


class Asked:
    """A trained model, asked for its accuracy in several ways."""

    def __init__(self, model: HyperModel, sequence: TaskSequence) -> None:
        self.model, self.sequence = model, sequence
        self.batch_size = images_at_once(model, sequence[0])

    def scenario(self, scenario: str, criterion: Criterion) -> Answer:
        """By a criterion of the package."""

        def step() -> tuple[list[float], int]:
            kept = 0
            add_recognizer(self.model, criterion)
            if self.model.recognizer is not None:
                teach(self.model, self.sequence, criterion, self.batch_size)
                kept = self.model.recognizer.kept_bytes
            protocol = Protocol(scenario, criterion, self.batch_size, self.sequence.head)
            found = [accuracies(self.model, self.sequence, protocol, split=split).right for split in SPLITS]
            return [float(each.mean()) for each in found], kept

        return step

    def discriminant(self) -> Answer:
        """By class means and one covariance of what the first task's network gives to its last layer."""

        def step() -> tuple[list[float], int]:
            classes = [len(task.classes) for task in self.sequence.tasks]
            moments = ClassMoments(sum(classes))
            for task, data in enumerate(self.sequence.tasks):
                moments.add(self._features(task, data.train), data.train.labels + sum(classes[:task]))
            means, whiten = moments.means(), whitening(loaded(moments.covariance(), RIDGE))
            found = []
            for split in SPLITS:
                right = []
                for task, data in enumerate(self.sequence.tasks):
                    own: Split = getattr(data, split)
                    x = self._features(task, own).double()
                    apart = torch.stack([squared_distances(x, mean[None], whiten) for mean in means])
                    right.append(float((apart.argmin(0) == own.labels + sum(classes[:task])).double().mean()))
                found.append(sum(right) / len(right))
            width = means.shape[1]
            return found, 4 * (means.numel() + width * (width + 1) // 2)

        return step

    @torch.no_grad()
    def _features(self, task: int, split: Split) -> Tensor:
        """[N, D] under the first task's parameters and statistics."""
        data, net, params, found = self.sequence[task], self.model.net, self.model.hnet(0), []
        layer = [name for name, module in net.named_modules() if not list(module.children()) and list(module.parameters())][-1]
        with evaluation_mode(self.model):
            for images in split.images.split(self.batch_size):
                with watched(net, [layer]) as inputs:
                    self.model.run(params, data.preprocess(images), 0)
                found.append(inputs[layer])
        return torch.cat(found)


def answers(contenders: Sequence[Contender], image: int) -> Report:
    """Asks all of them.

    Args:
        image: bytes of an image.
    """
    figures: list[dict[str, Any]] = []
    for contender in contenders:
        answer: Any = contender.build()
        (val, test), kept = answer()
        figures.append({"name": contender.name, "val": val, "test": test, "bytes": kept, "images": kept // image})
    rows = [[f["name"], f"{f['val']:.4f}", f"{f['test']:.4f}", f"{f['bytes']:,}", f"{f['images']:,}"] for f in figures]
    note = "accuracy on held-out and on test images; bytes that are kept for it, and how many images would take as many"
    return Report(["contender", "held out", "test", "bytes", "images"], rows, note, figures, {})
