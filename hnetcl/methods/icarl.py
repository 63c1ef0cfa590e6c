"""iCaRL: exemplars, distillation, and the nearest mean of exemplars."""

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.inference import Classifier, NearestMean
from hnetcl.memory import require
from hnetcl.methods.base import Draw, Inputs, Losses, Method, Run
from hnetcl.model import HyperModel
from hnetcl.modules import auxiliary_logits, main_logits
from hnetcl.registry import register
from hnetcl.tasks import TaskSequence, batch_sizes
from hnetcl.tasks.exemplars import Exemplars

AT_ONCE = 500  # images whose features are taken


@register("method", "icarl")
class ICaRL(Method):
    r"""Trains on new images and stored exemplars together, and classifies by the nearest mean of exemplars.

    Each image of a step is a random one of both. The loss is the mean over images of a sum over classes,

    .. math:: \sum_{k\ \mathrm{new}} \mathrm{BCE}(\sigma(h_k(x)), [y = k])
        + \sum_{k\ \mathrm{old}} \mathrm{BCE}(\sigma(h_k(x)), \sigma(h_k^{\mathrm{before}}(x) / \tau))

    with h before of the network before the task, in evaluation. At a task's end each of its classes is given exemplars by
    herding, on features of length 1, in an order; classes that may keep fewer lose their last ones. Then all means are taken
    anew, of the exemplars, under the network as it is: see `NearestMean`, which evaluation uses in place of the logits.

    It takes a network that is the same for all tasks and has a logit for each class of all: head=all.

    Args:
        size: exemplars, for all classes together.
        shares: of a class: "seen", `size` over the number of classes seen so far; "all", over that of all classes.
        temperature: tau.

    As others call it: shares are `--budget` a class, with `--use-full-capacity` for "seen", in van de Ven's code, where
    `--icarl` stands for `--prototypes --add-buffer --bce --bce-distill --herding`, features are normalized (`norm_exemplars`),
    tau is 2 (`--temp`), and the active classes are "all-so-far". Mammoth has `buffer_size` for size; Avalanche `memory_size`,
    with `fixed_memory=True` for "seen". Means of mirrored exemplars, which the authors average in, are not taken here.

    Source: Rebuffi et al. 2017 (arXiv:1611.07725), algorithms 1 to 5; the mean that herding comes near to is of length 1, as in
    the authors' code.
    """

    unfit: ClassVar = {"label_smoothing": "its loss is a binary cross entropy of each class"}

    def __init__(
        self,
        *,
        size: Annotated[int, Ge(1)] = 2000,
        shares: Literal["seen", "all"] = "seen",
        temperature: Annotated[float, Gt(0)] = 1.0,
    ) -> None:
        self.size, self.shares, self.temperature = size, shares, temperature
        self.memory = Exemplars(size)
        self.before: HyperModel | None = None

    @property
    def stored_images(self) -> int:
        return len(self.memory)

    def classifier(self) -> Classifier:
        return NearestMean()

    def check(self, model: HyperModel, sequence: TaskSequence) -> None:
        if sequence.loss != "cross_entropy":
            raise ArgumentError("name", "icarl", "looks for the nearest class, and the sequence is a regression")
        if model.is_conditioned:
            rule = "needs a network that is the same for all tasks; allowed: hnet=direct head=all bn.rows=shared"
            raise ArgumentError("name", "icarl", rule)
        if sequence.head != "all":
            raise ArgumentError("head", sequence.head, "must have a logit for each class of all tasks; allowed: all")
        classes = sum(sequence.class_counts)
        if self.size < classes:
            raise ArgumentError("size", self.size, f"must be at least {classes}: one exemplar for each class of all tasks")
        require("size", self.size, float(self.size * math.prod(sequence.in_shape)))

    def start_task(self, run: Run) -> None:
        self.memory.to(run.generator.device)
        self.before = deepcopy(run.model).eval().requires_grad_(False) if run.task else None

    @torch.no_grad()
    def inputs(self, run: Run, draw: Draw) -> Inputs:
        x, y = draw()
        if self.before is None:
            return run.batch(x, y, run.task)
        stored, device = len(self.memory), y.device
        share = stored / (stored + len(run.data.train))
        is_old = torch.rand(len(y), generator=run.generator, device=device) < share
        places = torch.randint(stored, (len(y),), generator=run.generator, device=device)
        old = self.memory.inputs(places, run.sequence, range(run.task), run.generator)
        x = torch.where(is_old.reshape(-1, *[1] * (x.ndim - 1)), old, x)
        inputs = run.batch(x, torch.where(is_old, self.memory.classes[places], y), run.task)
        inputs.tensors["before"] = (main_logits(self.before(x, run.task)) / self.temperature).sigmoid()
        inputs.tensors["old"] = torch.arange(run.sequence.num_outputs, device=device) < run.sequence.first_output(run.task)
        return inputs

    def micro_batches(self, inputs: Inputs, parts: int) -> list[Inputs]:
        return inputs.split(parts, before=0)

    def task_loss(self, outputs: object, inputs: Inputs) -> Losses:
        """Binary cross entropy with the labels, of the classes that are not old."""
        logits = main_logits(outputs)
        if auxiliary_logits(outputs):
            raise ArgumentError("net", "auxiliary classifiers", "method=icarl has no loss for them; allowed: a net without")
        labels = (inputs.y[:, None] == torch.arange(logits.shape[1], device=logits.device)).float()
        counted = torch.ones_like(logits) if inputs.active is None else inputs.active.expand_as(logits).float()
        if "old" in inputs.tensors:
            counted = counted * ~inputs.tensors["old"]
        loss = _summed(logits, labels, counted)
        return Losses(loss, {"loss": loss}, logits)

    def loss(self, model: HyperModel, inputs: Inputs) -> Losses:
        task = super().loss(model, inputs)
        if "old" not in inputs.tensors:
            return task
        drift = _summed(task.logits, inputs.tensors["before"], inputs.tensors["old"].expand_as(task.logits).float())
        return Losses(task.total + drift, {**task.parts, "distillation": drift}, task.logits)

    @torch.no_grad()
    def end_task(self, run: Run) -> None:
        memory, data, first, device = self.memory, run.data, run.sequence.first_class(run.task), run.generator.device
        nearest = run.model.classifier
        if not nearest.opened:
            nearest.open(run.model, data.preprocess(data.train.images[:2]), run.sequence.num_outputs)
        classes = sum(run.sequence.class_counts) if self.shares == "all" else first + len(data.classes)
        share = self.size // classes
        memory.shrink([share] * first)
        for label in range(len(data.classes)):
            images = data.train.images[data.train.labels == label]
            sizes = batch_sizes(len(images), AT_ONCE)
            features = [nearest.features(run.model, data.preprocess(some), run.task) for some in images.split(sizes)]
            memory.add(images[herded(torch.cat(features), share)], first + label)
        places = torch.arange(len(memory), device=device).split(batch_sizes(len(memory), AT_ONCE))
        own = [memory.inputs(some, run.sequence, range(run.task + 1)) for some in places]
        nearest.learn(torch.cat([nearest.features(run.model, x, run.task) for x in own]), memory.classes)

    def task_state(self) -> dict[str, Tensor]:
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.memory.load_state_dict(state)


def herded(features: Tensor, number: int) -> Tensor:
    """Which samples, one after the other, bring the mean of those chosen as near as possible to the mean of all.

    Args:
        features: [N, D], of length 1; so is the mean of all.
        number: of samples, at most; each comes once.

    Source: Rebuffi et al. 2017 (arXiv:1611.07725), algorithm 4.
    """
    mean, sum_ = F.normalize(features.mean(0), dim=0), torch.zeros_like(features[0])
    lengths, chosen = features.square().sum(1) / 2, []
    for count in range(1, min(number, len(features)) + 1):
        # || (sum + f) / count - mean ||^2 is least where || f ||^2 / 2 + f . (sum - count mean) is.
        best = (lengths + features @ (sum_ - count * mean)).argmin()
        chosen.append(best)
        sum_ = sum_ + features[best]
        lengths[best] = torch.inf
    return torch.stack(chosen)


def _summed(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Binary cross entropy [N, K], summed over the classes that count, and its mean over samples."""
    return (F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * counted).sum(1).mean()
