"""What classifies in place of the largest logit."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnetcl.errors import ArgumentError
from hnetcl.inference.inputs import LINEAR, watched
from hnetcl.model import HyperModel
from hnetcl.modes import evaluation_mode
from hnetcl.modules import main_logits
from hnetcl.tasks import TaskSequence


class Classifier(nn.Module):
    """Turns what layers of a network are given into scores of classes, of which evaluation takes the largest.

    A method that does not classify by logits returns one from `Method.classifier`; the model then has it as `model.classifier`.
    What it learns lies in buffers, which a run saves with its model. Where the task is not told, the network must be the same
    for all tasks.
    """

    opened = False
    """Whether there are buffers."""
    watches: tuple[str, ...] = ()
    """The layers whose inputs it looks at (see `inputs.watched`)."""

    def open(self, model: HyperModel, x: Tensor, outputs: int) -> None:
        """Makes the buffers, for a network, its input [N, ...] and K logits.

        Raises:
            ArgumentError: the network is none that it can be used with.
        """
        raise NotImplementedError

    def open_as(self, tensors: Mapping[str, Tensor]) -> None:
        """The same from what a run has saved; values are loaded later.

        Raises:
            ValueError: these are not the tensors of such a classifier.
        """
        raise NotImplementedError

    def scores(self, inputs: Mapping[str, Tensor], logits: Tensor) -> Tensor:
        """Scores of classes [N, K].

        Args:
            inputs: of layers by name, [N, D] each.
            logits: [N, K] of the network.
        """
        raise NotImplementedError

    def forward(
        self, model: HyperModel, params: dict[str, Tensor], x: Any, task: int, stats: int | str | None = None
    ) -> Tensor:
        """Runs the network, as `HyperModel.run` does, and gives scores in place of its outputs."""
        with watched(model.net, self.watches) as inputs:
            logits = main_logits(model.run(params, x, task, stats))
        return self.scores(inputs, logits)


def open_classifier(model: HyperModel, sequence: TaskSequence, classifier: Classifier | None) -> None:
    """Sees to it that a model has a classifier such as this one, opened; or none.

    Raises:
        ArgumentError: it can't be used with the network.
    """
    if type(model.classifier) is not type(classifier):
        model.classifier = classifier
    if model.classifier is not None and not model.classifier.opened:
        first = sequence[0]
        model.classifier.open(model, first.preprocess(first.train.images[:2]), sequence.num_outputs)


class NearestMean(Classifier):
    """A class's score is minus the squared distance of a sample's features from the class's mean, both of length 1.

    Features are the input of the last linear layer to run. Classes without a mean have the score minus infinity.

    Source: Rebuffi et al. 2017 (arXiv:1611.07725), algorithm 1; there both are normalized, too (section 3.1).
    """

    @torch.no_grad()
    def open(self, model: HyperModel, x: Tensor, outputs: int) -> None:
        names = [name for name, module in model.net.named_modules() if isinstance(module, LINEAR)]
        with evaluation_mode(model), watched(model.net, names) as found:
            model.run(model.hnet(0), x, 0)
        if not found:
            rule = f"{type(model.net).__name__} has no linear layer, whose input would be the features of nearest means"
            raise ArgumentError("net", type(model.net).__name__, rule)
        layer = list(found)[-1]
        self._open(layer, outputs, found[layer].shape[1], x.device)

    def open_as(self, tensors: Mapping[str, Tensor]) -> None:
        names = [name for name in tensors if name.startswith("means ")]
        if len(names) != 1 or tensors[names[0]].ndim != 2:
            raise ValueError("the means that classify are missing")
        self._open(names[0].partition(" ")[2].replace("/", "."), *tensors[names[0]].shape)

    def _open(self, layer: str, outputs: int, width: int, device: torch.device | None = None) -> None:
        self.opened, self.watches = True, (layer,)
        self.register_buffer(f"means {layer.replace('.', '/')}", torch.zeros(outputs, width, device=device))
        self.register_buffer("known", torch.zeros(outputs, dtype=torch.bool, device=device))

    @property
    def means(self) -> Tensor:
        """[K, D], of length 1; zeros for a class that is not known."""
        return self.get_buffer(f"means {self.watches[0].replace('.', '/')}")

    @torch.no_grad()
    def features(self, model: HyperModel, x: Tensor, task: int) -> Tensor:
        """Of samples [N, D], of length 1, in evaluation."""
        with evaluation_mode(model), watched(model.net, self.watches) as inputs:
            model.run(model.hnet(task), x, task)
        return F.normalize(inputs[self.watches[0]])

    @torch.no_grad()
    def learn(self, features: Tensor, labels: Tensor) -> None:
        """Takes all means anew, from the features [N, D] of samples and their labels [N]."""
        self.means.zero_().index_add_(0, labels, features)
        self.means.copy_(F.normalize(self.means))
        self.get_buffer("known").copy_(labels.bincount(minlength=len(self.means)) > 0)

    def scores(self, inputs: Mapping[str, Tensor], logits: Tensor) -> Tensor:
        apart = (F.normalize(inputs[self.watches[0]])[:, None] - self.means).square().sum(-1)
        return (-apart).masked_fill(~self.get_buffer("known"), -torch.inf)
