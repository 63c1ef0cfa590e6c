"""The sequences of Avalanche 0.6 and Continuum 1.2.7, where these are installed: the same images in the same order."""

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.strategies import unpack_mnist

from hnetcl.tasks import TaskSequence, load_images, permuted_sequence, split_sequence
from hnetcl.vision import import_torchvision

SOME = range(0, 10000, 997)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged MNIST as torchvision keeps it."""
    root = tmp_path_factory.mktemp("mnist")
    unpack_mnist(root)
    return root


def own_permuted(library: Any) -> TaskSequence:
    sequence: TaskSequence = permuted_sequence(
        load_images,
        seed=7,
        num_tasks=3,
        padding=0,
        val_size=0,
        preprocess="none",
        permutations=library,
        first="identity" if library == "continuum" else "permuted",
    )
    return sequence


def test_split_mnist_of_avalanche(files: Path) -> None:
    """The same images in every task. Avalanche has them class after class, here they keep the order of the whole set."""
    import_torchvision()
    classic = pytest.importorskip("avalanche.benchmarks.classic")
    own = {"dataset_root": files, "train_transform": None, "eval_transform": None}
    theirs = classic.SplitMNIST(5, fixed_class_order=list(range(10)), **own)
    ours = split_sequence(load_images, val_size=0, preprocess="none")
    for task, experience in zip(ours.tasks, theirs.train_stream, strict=True):
        order = task.train.labels.argsort(stable=True)
        labels = task.train.labels[order] + int(task.classes[0])
        assert [int(label) for label in experience.dataset.targets] == labels.tolist()
        for number in SOME:
            chosen = order[number : number + 1]
            assert torch.equal(task.preprocess(task.train.images[chosen])[0], experience.dataset[number][0])
    tests = [experience.dataset for experience in theirs.test_stream]
    made = TaskSequence.from_datasets(tests, tests, preprocess="none")
    for task, found in zip(ours.tasks, made.tasks, strict=True):
        order = task.test.labels.argsort(stable=True)
        assert torch.equal(found.test.images, task.test.images[order])
        assert torch.equal(found.test.labels, task.test.labels[order])


def test_permutations_of_avalanche(files: Path) -> None:
    import_torchvision()
    classic = pytest.importorskip("avalanche.benchmarks.classic")
    theirs = classic.PermutedMNIST(3, seed=7, dataset_root=files, train_transform=None, eval_transform=None)
    for task, experience in zip(own_permuted("avalanche").tasks, theirs.train_stream, strict=True):
        order = task.train.labels.argsort(stable=True)
        for number in SOME:
            chosen = order[number : number + 1]
            assert torch.equal(task.preprocess(task.train.images[chosen])[0], experience.dataset[number][0])


def test_permutations_of_continuum(files: Path) -> None:
    import_torchvision()
    scenarios = pytest.importorskip("continuum.scenarios")
    mnist = pytest.importorskip("continuum.datasets").MNIST
    theirs = scenarios.Permutations(mnist(files, train=True), nb_tasks=3, seed=7, shared_label_space=True)
    for task, taskset in zip(own_permuted("continuum").tasks, theirs, strict=True):
        for number in SOME:
            image, label, _ = taskset[number]
            assert torch.equal(task.preprocess(task.train.images[number : number + 1])[0], image)
            assert int(task.train.labels[number]) == int(label)
