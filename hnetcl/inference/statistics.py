"""Tasks recognised by the statistics of what layers are given."""

from collections.abc import Iterator, Mapping
from typing import Annotated

import torch
from annotated_types import Ge, Le, Len
from torch import Tensor

from hnetcl.errors import ArgumentError
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
from hnetcl.inference.recognizer import Recognizer, Scorer
from hnetcl.inference.scores import entropy
from hnetcl.memory import require
from hnetcl.model import HyperModel
from hnetcl.modes import evaluation_mode
from hnetcl.modules import main_logits
from hnetcl.patterns import matching
from hnetcl.registry import register
from hnetcl.tasks import Split, Task, TaskSequence, batch_sizes

SMALLEST = 1e-12  # squared distance whose logarithm is taken; features of dead layers lie on their mean


@register("inference", "statistics")
class FeatureStatistics(Recognizer):
    r"""A sample belongs to the task under whose network the layers are given what they were given in that task's training.

    At a task's end one pass over its training images, under its own parameters and statistics, keeps of each watched layer's
    input the mean of every class and the covariance within classes. No image is kept. The surety of task t for a sample is

    .. math:: -\frac{s_t(x) - m_t}{\sigma_t} - w H_t(x), \quad
        s_t(x) = \frac{\sum_l D_l \log d_{tl}^2(x)}{\sum_l D_l}

    d_tl is the Mahalanobis distance of layer l's input, D_l wide, from the nearest class mean; m_t and sigma_t are mean and
    standard deviation of s_t on the task's held-out images; H_t is the entropy of the predicted classes in nats. D_l / 2 times
    the logarithm is what the density of a Student distribution falls by where its tails begin: wide layers say more.

    Args:
        layers: name patterns of the linear and convolution layers whose inputs are watched (see `inputs.watched`), or
            "input", the network's own input; None: all layers but the first to run.
        rank: leading directions that are kept of a covariance, with one residual variance; None keeps all of it.
        ridge: share of the mean variance that is added to every variance. Rows are float32: less would be lost in them.
        entropy: w.

    Sources: Lee et al. 2018 (arXiv:1807.03888), equation 2, for outliers; Kim et al. 2022 (arXiv:2211.02633), theorem 3, on why
    it serves class-incremental learning; Lin et al. 2024 (arXiv:2309.15048).
    """

    def __init__(
        self,
        *,
        layers: Annotated[list[str], Len(1)] | None = None,
        rank: Annotated[int, Ge(1)] | None = None,
        ridge: Annotated[float, Ge(1e-6), Le(1e6)] = 0.01,
        entropy: Annotated[float, Ge(0)] = 0.0,
    ) -> None:
        super().__init__()
        self.layers, self.rank, self.ridge, self.entropy = layers, rank, ridge, entropy

    @torch.no_grad()
    def open(self, model: HyperModel, x: Tensor, classes: int) -> None:
        known = [INPUT, *layer_names(model.net)]
        chosen = matching("layers", self.layers, known) if self.layers is not None else known[1:]
        with evaluation_mode(model), watched(model.net, chosen) as found:
            model.run(model.hnet(0), x, 0)
        if self.layers is None:
            found.pop(next(iter(found), ""), None)
            if not found:
                rule = f"{type(model.net).__name__} has no layer that runs after a first; allowed: {', '.join(known)}"
                raise ArgumentError("layers", None, rule)
        else:
            matching("layers", self.layers, list(found) or [INPUT])  # a layer that doesn't run has no input
        shapes = {name: (classes, value.shape[1]) for name, value in found.items()}
        widths = [width for _, width in shapes.values()]  # rows in float32, and a covariance three times in float64
        kept = sum(4 * width * (self.rank or width / 2) for width in widths)
        require("layers", self.layers, model.hnet.num_tasks * kept + 24.0 * sum(width**2 for width in widths))
        self._open(model.hnet.num_tasks, shapes, x.device)

    def open_as(self, tensors: Mapping[str, Tensor]) -> None:
        means = {name.partition(" ")[2]: value for name, value in tensors.items() if name.startswith("means ")}
        if not means or any(value.ndim != 3 or not value.numel() for value in means.values()):
            raise ValueError("the statistics that tasks are recognised by are missing")
        tasks = len(next(iter(means.values())))
        self._open(tasks, {name.replace("/", "."): (value.shape[1], value.shape[2]) for name, value in means.items()})

    def _open(self, tasks: int, shapes: Mapping[str, tuple[int, int]], device: torch.device | None = None) -> None:
        """Rows for layers with inputs so wide, of so many classes: standard normal, until a task is learned."""
        self.opened, self.watches = True, tuple(shapes)
        for name, value in self._new_row(shapes).items():
            self.register_buffer(name, value.expand(tasks, *value.shape).clone().to(device))

    def _new_row(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        row = {"centre": torch.zeros(()), "spread": torch.ones(())}
        for name, (classes, width) in shapes.items():
            row[_buffer("means", name)] = torch.zeros(classes, width)
            if self.rank is None:
                row[_buffer("covariance", name)] = packed(torch.eye(width))
            else:
                row[_buffer("directions", name)] = torch.zeros(min(self.rank, width), width)
                row[_buffer("residual", name)] = torch.ones(())
        return row

    @torch.no_grad()
    def add_task(self) -> None:
        super().add_task()
        shapes = {name: tuple(self.get_buffer(_buffer("means", name)).shape[1:]) for name in self.watches}
        for name, value in self._new_row(shapes).items():
            self.get_buffer(name)[-1] = value

    def check(self, sequence: TaskSequence) -> None:
        for task, data in enumerate(sequence.tasks):
            if len(data.val) < 2:
                rule = f"needs held-out images of every task, and task {task} has {len(data.val)}"
                raise ArgumentError("inference", "statistics", f"{rule}; allowed: task.val_size=2 or more")

    @torch.no_grad()
    def learn(self, model: HyperModel, task: int, data: Task, batch_size: int) -> None:
        """One pass over the training images, and one over the held-out ones."""
        moments = {name: ClassMoments(len(data.classes)) for name in self.watches}
        for inputs, _, labels in self._passes(model, task, data, data.train, batch_size):
            for name in self.watches:
                moments[name].add(inputs[name], labels)
        for name, found in moments.items():
            self._keep(name, task, found.means(), loaded(found.covariance(), self.ridge))
        whitenings = self._whitenings(task)
        values = [
            self._distance(task, inputs, whitenings) for inputs, _, _ in self._passes(model, task, data, data.val, batch_size)
        ]
        own = torch.cat(values)
        self.get_buffer("centre")[task], self.get_buffer("spread")[task] = own.mean(), own.std().clamp(min=1e-6)

    def check_rows(self, model: HyperModel) -> None:
        super().check_rows(model)
        if not (self.get_buffer("spread") > 0).all():
            raise ValueError("recognizer.spread is not positive")

    def scorer(self, task: int) -> Scorer:
        whitenings = self._whitenings(task)
        centre, spread = self.get_buffer("centre")[task], self.get_buffer("spread")[task]

        def score(inputs: Mapping[str, Tensor], logits: Tensor) -> Tensor:
            sure = (centre - self._distance(task, inputs, whitenings)) / spread
            return sure.double() + self.entropy * entropy(logits[None])[0]

        return score

    def _row(self, kind: str, name: str, task: int) -> Tensor:
        return self.get_buffer(_buffer(kind, name))[task]

    def _keep(self, name: str, task: int, means: Tensor, covariance: Tensor) -> None:
        rows = self._row("means", name, task)
        rows.copy_(means[:1])  # where another task has more classes: to come twice changes no distance from the nearest
        rows[: len(means)] = means
        if self.rank is None:
            self._row("covariance", name, task).copy_(packed(covariance))
        else:
            directions = self._row("directions", name, task)
            found, residual = leading(covariance, len(directions))
            directions.copy_(found)
            self._row("residual", name, task).copy_(residual)

    def _whitenings(self, task: int) -> dict[str, Tensor]:
        """Of each layer [D, D], in float32; found in float64."""
        if self.rank is None:
            full = {name: unpacked(self._row("covariance", name, task).double()) for name in self.watches}
            return {name: whitening(covariance, self.ridge).float() for name, covariance in full.items()}
        rows = {n: (self._row("directions", n, task).double(), self._row("residual", n, task).double()) for n in self.watches}
        return {name: whitening_of_leading(*row).float() for name, row in rows.items()}

    def _distance(self, task: int, inputs: Mapping[str, Tensor], whitenings: Mapping[str, Tensor]) -> Tensor:
        """s_t of samples [N]."""
        parts = []
        for name, whiten in whitenings.items():
            squared = squared_distances(inputs[name].float(), self._row("means", name, task).float(), whiten)
            parts.append(len(whiten) * squared.clamp(min=SMALLEST).log())
        return torch.stack(parts).sum(0) / sum(map(len, whitenings.values()))

    def _passes(
        self, model: HyperModel, task: int, data: Task, split: Split, batch_size: int
    ) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        """Inputs of the layers, logits and labels, batch by batch."""
        params = model.hnet(task)
        with evaluation_mode(model):
            sizes = batch_sizes(len(split), batch_size)
            for images, labels in zip(split.images.split(sizes), split.labels.split(sizes), strict=True):
                with watched(model.net, self.watches) as inputs:
                    logits = main_logits(model.run(params, data.preprocess(images), task))
                yield inputs, logits, labels


def _buffer(kind: str, layer: str) -> str:
    """The name of a layer's rows, which may have no dots."""
    return f"{kind} {layer.replace('.', '/')}"
