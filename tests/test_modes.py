"""Layers that a user has set to evaluation stay so, whatever is done with the model, and whatever is raised."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hnetcl
from hnetcl.bn import BATCH, BatchNormLayer, using_task
from hnetcl.errors import ArgumentError
from hnetcl.hnets import DirectHyperNetwork
from hnetcl.importance import fisher_information
from hnetcl.methods.output_regularizer import OutputRegularizer
from hnetcl.model import HyperModel
from hnetcl.nets import require_logits
from hnetcl.tasks import TaskSequence, load_images, split_sequence
from hnetcl.training import Protocol, Trainer, accuracies, accuracy
from hnetcl.training.optimizers import adam
from hnetcl.training.statistics import statistics_report

ADAM = adam(lr=0.01)
PROTOCOL = Protocol(batch_size=50)


class StopError(Exception):
    """Raised inside a network."""


class Stops(nn.Module):
    """The identity, until it is told to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.stop = False

    def forward(self, x: Tensor) -> Tensor:
        if self.stop:
            raise StopError
        return x


@pytest.fixture
def sequence(data_root: Path) -> TaskSequence:
    return split_sequence(lambda _: load_images("tiny", data_root), num_tasks=3, val_size=20)


@pytest.fixture
def model() -> HyperModel:
    """Its second batch-norm layer and its dropout are in evaluation mode, all else is in training mode."""
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(256, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 8), nn.BatchNorm1d(8), Stops()]
    model = hnetcl.wrap(nn.Sequential(*layers, nn.Linear(8, 2)), 3, hnet=DirectHyperNetwork, per_task=[])
    for k in (3, 5):
        model.get_submodule(f"net.{k}").eval()
    return model


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: layer.training for name, layer in model.named_modules()}


def images(sequence: TaskSequence) -> Tensor:
    return sequence[0].preprocess(sequence[0].train.images[:20])


USES: dict[str, Callable[[HyperModel, TaskSequence], object]] = {
    "accuracy": lambda model, sequence: accuracy(model, 0, sequence[0], sequence[0].test, PROTOCOL),
    "accuracies": lambda model, sequence: accuracies(model, sequence, PROTOCOL),
    "accuracies of untold tasks": lambda model, sequence: accuracies(model, sequence, Protocol("class")),
    "statistics_report": lambda model, sequence: statistics_report(model, sequence, 2, 50),
    "fisher_information": lambda model, sequence: fisher_information(model, 0, images(sequence), torch.Generator()),
    "recalibrate": lambda model, sequence: hnetcl.recalibrate(model.net, [images(sequence)], 0, lambda x: model(x, 0, BATCH)),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("stop", [False, True])
def test_every_layer_is_put_back_into_its_own_mode(use: str, stop: bool, model: HyperModel, sequence: TaskSequence) -> None:
    before = modes(model)
    assert set(before.values()) == {True, False}
    stops = model.get_submodule("net.6")
    assert isinstance(stops, Stops)
    stops.stop = stop
    if stop:
        with pytest.raises(StopError):
            USES[use](model, sequence)
    else:
        USES[use](model, sequence)
    assert modes(model) == before


@pytest.mark.parametrize("whole", [False, True])
def test_training_respects_single_layers_and_starts_what_is_in_evaluation_as_a_whole(
    whole: bool, model: HyperModel, sequence: TaskSequence
) -> None:
    """A frozen batch-norm layer keeps its rows; a network that came in evaluation mode, as pretrained ones do, is trained."""
    if whole:
        model.net.eval()
    before = modes(model)
    Trainer(model, sequence, OutputRegularizer(beta=0.1), ADAM, torch.Generator(), steps=3, batch_size=16).fit()
    frozen, other = (model.get_submodule(f"net.{k}") for k in (5, 2))
    assert isinstance(frozen, BatchNormLayer)
    assert isinstance(other, BatchNormLayer)
    assert (other.get_stats(2)[0] != 0).any()
    assert (frozen.get_stats(2)[0] != 0).any() == whole
    assert whole or modes(model) == before


def test_a_network_of_ones_own_may_come_with_frozen_layers() -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net[1].eval()
    require_logits(net, "frozen", (1, 2, 2), 2)
    assert list(modes(net).values()) == [True, True, False, True]
    require_logits(net.eval(), "frozen", (1, 2, 2), 2)
    assert all(modes(net).values())


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_numpys_integers_are_task_numbers(kind: Callable[[int], int], model: HyperModel, sequence: TaskSequence) -> None:
    x = images(sequence)
    with torch.no_grad():
        for layer in (model.net, model.hnet):
            layer.eval()
        assert torch.equal(model(x, kind(1)), model(x, 1))
        assert torch.equal(model(x, kind(1), kind(2)), model(x, 1, 2))
        for name, value in model.hnet(kind(2)).items():
            assert torch.equal(value, model.hnet(2)[name])
        with using_task(model.net, kind(1)):
            assert all(layer.row == 1 for layer in model.modules() if isinstance(layer, BatchNormLayer))
        with pytest.raises(ValueError, match="task=3: there are tasks 0 to 2"):
            model(x, kind(3))
        with pytest.raises(TypeError):
            model(x, 1.0)


class Formed(nn.Module):
    """A linear layer whose outputs are put into another form."""

    def __init__(self, form: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.form = nn.Linear(256, 4), form

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self.linear(x.flatten(1)))


@pytest.mark.parametrize("form", [lambda y: y[:, :1], lambda y: y[:, 0], lambda y: y.reshape(-1, 2, 2), lambda y: y[:1]])
def test_what_gives_no_logit_for_each_class_is_refused(form: Callable[[Tensor], Tensor], sequence: TaskSequence) -> None:
    """One logit has no cross entropy, and its accuracy would be that of class 0."""
    model = hnetcl.wrap(Formed(form), 3, hnet=DirectHyperNetwork, per_task=[])
    with pytest.raises(ArgumentError, match=r"logits=\[.+\]: must be \[2, K\] with K at least 2, for the task has 2 classes"):
        Trainer(model, sequence, OutputRegularizer(beta=0.1), ADAM, torch.Generator(), steps=1)
    with pytest.raises(ArgumentError, match=r"K at least 2"):
        accuracy(model, 0, sequence[0], sequence[0].test, PROTOCOL)
