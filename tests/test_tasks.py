"""Image sets, sequences of tasks, and batches."""

import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from hnetcl.errors import ArgumentError
from hnetcl.tasks import Batches, Images, load_images, permuted_sequence, sources, split_sequence
from hnetcl.tasks.images import TENSORS
from hnetcl.tasks.split import _order


@pytest.fixture(scope="module")
def images(data_root: Path) -> Images:
    return load_images("tiny", data_root)


@pytest.fixture(scope="module")
def mnist() -> Images:
    return load_images("mnist")


def test_mnist_travels_with_the_package(mnist: Images) -> None:
    assert mnist.train_images.shape == (60000, 1, 28, 28)
    assert mnist.test_images.shape == (10000, 1, 28, 28)
    assert mnist.train_labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert mnist.train_images.dtype == torch.uint8


@pytest.mark.parametrize(
    ("name", "md5"),
    [
        ("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb"),
        ("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624"),
        ("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea"),
        ("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637"),
    ],
)
def test_the_packaged_files_are_the_canonical_ones(name: str, md5: str) -> None:
    packed = (Path(sources.__file__).parent / "mnist" / f"{name}.gz").read_bytes()
    assert hashlib.md5(gzip.decompress(packed)).hexdigest() == md5


def test_data_root_comes_first(tmp_path: Path, images: Images) -> None:
    tensors = {name: getattr(images, name) for name in TENSORS}
    save_file(tensors, tmp_path / "mnist.safetensors", {"classes": json.dumps(list("abcdef"))})
    assert load_images("mnist", tmp_path).classes == tuple("abcdef")
    assert load_images("mnist", tmp_path).train_images.shape == images.train_images.shape


def broken(tmp_path: Path, images: Images, **changes: Any) -> Path:
    tensors = {name: getattr(images, name) for name in TENSORS} | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, tmp_path / "tiny.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, "tiny.safetensors lacks test_images or test_labels"),
        ({"train_images": torch.zeros(3, 8, 8)}, r"holds train_images \(3, 8, 8\) torch.float32, expected uint8"),
        ({"train_labels": torch.zeros(3, dtype=torch.long)}, r"holds train_labels \(3,\) torch.int64, expected int64 \[360\]"),
        ({"test_labels": torch.full((120,), -1)}, "holds a negative label in test_labels"),
    ],
)
def test_faulty_files_are_told(tmp_path: Path, images: Images, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        load_images("tiny", broken(tmp_path, images, **changes))


def test_a_truncated_file_is_told(tmp_path: Path, images: Images) -> None:
    path = broken(tmp_path, images) / "tiny.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ArgumentError, match=r"root=.*: tiny.safetensors is truncated or not a safetensors file"):
        load_images("tiny", tmp_path)


def test_unknown_sets_and_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"dataset=minst: did you mean mnist\?"):
        load_images("minst")
    with pytest.raises(ArgumentError, match="there is no such folder"):
        load_images("mnist", tmp_path / "nowhere")


def test_torchvision_is_asked_once_and_its_set_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Colour sets arrive as numpy [N, H, W, C] with labels as a list, grey ones as tensors [N, H, W]."""
    calls = []

    def cifar(root: str, train: bool, download: bool) -> SimpleNamespace:
        calls.append(train)
        data = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).reshape(2, 4, 5, 3)
        return SimpleNamespace(data=data.numpy(), targets=[0, 1], classes=["cat", "dog"])

    fake = SimpleNamespace(datasets=SimpleNamespace(CIFAR10=cifar))
    monkeypatch.setattr(sources, "import_torchvision", lambda: fake)
    for _ in range(2):
        images = load_images("cifar10", tmp_path)
    assert calls == [True, False]
    assert images.classes == ("cat", "dog")
    assert images.train_images.shape == (2, 3, 4, 5)
    assert images.train_images[1, 2, 3, 4] == 2 * 4 * 5 * 3 - 1
    assert [path.name for path in tmp_path.iterdir()] == ["cifar10.safetensors"]


def test_a_download_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(sources, "import_torchvision", lambda: SimpleNamespace(datasets=SimpleNamespace(KMNIST=offline)))
    with pytest.raises(ArgumentError, match=r"dataset=kmnist: .* could not download it \(no route to host\)"):
        load_images("kmnist", tmp_path)
    assert not list(tmp_path.iterdir())


def test_torchvision_can_be_imported_beside_this_torch() -> None:
    from hnetcl.vision import import_torchvision

    torchvision = import_torchvision()
    assert torchvision is import_torchvision()
    assert torchvision.models.resnet18(num_classes=3)(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert torchvision.datasets.MNIST is not None


def test_split_mnist_is_the_published_one(mnist: Images) -> None:
    sequence = split_sequence(lambda _: mnist)
    assert sequence.name == "split_mnist"
    assert sequence.in_shape == (1, 28, 28)
    assert (len(sequence), sequence.num_classes) == (5, 2)
    assert [task.classes for task in sequence.tasks] == [("0", "1"), ("2", "3"), ("4", "5"), ("6", "7"), ("8", "9")]
    assert [len(task.test) for task in sequence.tasks] == [2115, 2042, 1874, 1986, 1983]
    assert [len(task.train) + len(task.val) for task in sequence.tasks] == [12665, 12089, 11263, 12183, 11800]


def test_splits_partition_the_images(images: Images) -> None:
    sequence = split_sequence(lambda _: images, num_tasks=3, val_size=20, class_order="random", seed=3)
    order = sequence.facts["class_order"]
    assert sorted(order) == list(range(6))
    for t, task in enumerate(sequence.tasks):
        chosen = order[2 * t : 2 * t + 2]
        assert task.classes == tuple(images.classes[c] for c in chosen)
        for k, original in enumerate(chosen):
            expected = images.test_images[images.test_labels == original]
            assert torch.equal(task.test.images[task.test.labels == k], expected)
        both = torch.cat([task.train.images, task.val.images]).flatten(1)
        wanted = images.train_images[torch.isin(images.train_labels, torch.tensor(chosen))].flatten(1)
        assert len(task.val) == 20
        assert torch.equal(both.long().sum(1).sort().values, wanted.long().sum(1).sort().values)


def test_sequences_depend_on_the_seed_alone(images: Images) -> None:
    def load(_: str) -> Images:
        return images

    for make in (split_sequence, permuted_sequence):
        arguments: dict[str, Any] = {"num_tasks": 3, "val_size": 20}
        if make is split_sequence:
            arguments["class_order"] = "random"
        first = make(load, seed=0, **arguments).manifest()
        torch.rand(10)
        assert make(load, seed=0, **arguments).manifest() == first
        assert make(load, seed=1, **arguments).manifest() != first


def test_permuted_tasks_permute_padded_pixels(images: Images) -> None:
    sequence = permuted_sequence(lambda _: images, num_tasks=4, padding=2, val_size=20)
    assert sequence.in_shape == (1, 20, 20)
    inputs = [task.preprocess(task.test.images[:8]) for task in sequence.tasks]
    for one in inputs:
        torch.testing.assert_close(one.flatten(1).sort().values, inputs[0].flatten(1).sort().values)
    assert not torch.equal(inputs[0], inputs[1])
    assert len({task.train.images.data_ptr() for task in sequence.tasks}) == 1


def test_preprocessing_standardizes(images: Images) -> None:
    task = split_sequence(lambda _: images, num_tasks=3, val_size=0).tasks[0]
    x = task.preprocess(images.train_images)
    assert float(x.mean()) == pytest.approx(0, abs=1e-4)
    assert float(x.std(correction=0)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tasks": 4}, "num_tasks=4: must be from 1 to 3: tiny has 6 classes, 2 a task"),
        ({"num_tasks": 0}, "num_tasks=0"),
        ({"classes_per_task": 7}, "classes_per_task=7: must be from 2 to 6"),
        ({"class_order": "reversed"}, "class_order=reversed: allowed: a list, icarl, natural, random"),
        ({"class_order": [0, 1, 2, 2, 3, 4]}, r"class_order=\[0, 1, 2, 2, 3, 4\]: must be different numbers from 0 to 5"),
        ({"classes_per_task": 1}, "classes_per_task=1: must be at least 2, or a list of such numbers"),
        ({"classes_per_task": [2, 1, 2]}, r"classes_per_task=\[2, 1, 2\]: must be at least 2, or a list of such numbers"),
        ({"classes_per_task": [2, 2]}, r"classes_per_task=\[2, 2\]: names 2 tasks, but num_tasks=3"),
        ({"classes_per_task": [3, 2, 2]}, r"classes_per_task=\[3, 2, 2\]: are 7 classes, but tiny has 6"),
        ({"class_order": [0, 1, 6]}, "must be different numbers from 0 to 5"),
        ({"class_order": [4, 5, 1]}, "names 3 classes, but the tasks have 6"),
        ({"val_size": 119}, "val_size=119: must be from 0 to 118"),
        ({"mean": 0.1}, "mean=0.1: goes unused with preprocess=standardized"),
        ({"preprocess": "constants", "mean": 0.1}, "std=None: is missing with preprocess=constants"),
        ({"preprocess": "constants", "mean": [0.1, 0.2], "std": 1.0}, r"mean=\[0.1, 0.2\]: must be one number, or 1"),
        ({"preprocess": "constants", "mean": 0.1, "std": 0.0}, "std=0.0: must be greater than 0"),
        ({"preprocess": "constants", "mean": 0.1, "std": 1e-40}, "std=1e-40: must be greater than 0, in float32 too"),
        ({"preprocess": "constants", "mean": 1e39, "std": 1.0}, "mean=1e.39: must be a number that float32 holds"),
    ],
)
def test_refused_split_arguments(images: Images, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        split_sequence(lambda _: images, **{"num_tasks": 3, "val_size": 20, **arguments})


def test_orders_of_classes(images: Images) -> None:
    """A list is taken as it is; iCaRL's is numpy's shuffle by 1993, which numpy's own random numbers know nothing of."""
    listed = split_sequence(lambda _: images, num_tasks=2, val_size=0, class_order=[5, 0, 3, 1])
    assert [task.classes for task in listed.tasks] == [("5", "0"), ("3", "1")]
    before = np.random.get_state()[1][:5].tolist()  # type: ignore[index]
    icarl = split_sequence(lambda _: images, num_tasks=3, val_size=0, class_order="icarl")
    assert np.random.get_state()[1][:5].tolist() == before  # type: ignore[index]
    expected = list(range(6))
    np.random.RandomState(1993).shuffle(expected)
    assert icarl.facts["class_order"] == expected
    hundred = _order("icarl", 0, replace(images, classes=tuple(map(str, range(100)))), 100)
    assert hundred[:10] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]  # as published for CIFAR-100


def test_pixels_as_papers_have_them(images: Images) -> None:
    """Hsu et al. 2018 pad with zeros, and then take constants; `none` leaves pixels in [0, 1]."""
    hsu = split_sequence(lambda _: images, val_size=0, num_tasks=3, padding=2, preprocess="constants", mean=0.1, std=0.2752)
    assert hsu.in_shape == (1, 20, 20)
    assert hsu.manifest()["padding"] == 2
    raw = images.test_images[torch.isin(images.test_labels, torch.tensor([0, 1]))]
    expected = (F.pad(raw.float() / 255, [2] * 4) - 0.1) / 0.2752
    torch.testing.assert_close(hsu[0].preprocess(hsu[0].test.images), expected)
    plain = split_sequence(lambda _: images, val_size=0, num_tasks=3, preprocess="none")
    torch.testing.assert_close(plain[0].preprocess(plain[0].test.images), raw.float() / 255)


def test_permutations_of_other_libraries(images: Images) -> None:
    """Those that Avalanche 0.6 and Continuum 1.2.7 draw, by their formulas."""
    random, pixels = np.random.RandomState(7), images.test_images.flatten(2)[:3, 0]
    same: dict[str, Any] = {"num_tasks": 3, "padding": 0, "val_size": 0, "preprocess": "none"}
    found = permuted_sequence(lambda _: images, seed=7, permutations="avalanche", **same)
    for task in found.tasks:
        expected = pixels[:, torch.from_numpy(random.permutation(256))]
        torch.testing.assert_close(task.preprocess(images.test_images[:3]).flatten(1), expected / 255)
    seeds = np.random.RandomState(7).permutation(100000)[:2]
    found = permuted_sequence(lambda _: images, seed=7, permutations="continuum", first="identity", **same)
    orders = [torch.arange(256), *(torch.randperm(256, generator=torch.Generator().manual_seed(int(s))) for s in seeds)]
    for task, order in zip(found.tasks, orders, strict=True):
        torch.testing.assert_close(task.preprocess(images.test_images[:3]).flatten(1), pixels[:, order] / 255)
    assert found[0].facts == {"permutation": "identity"}
    with pytest.raises(ArgumentError, match="first=permuted: Continuum's first task has the images as they are"):
        permuted_sequence(lambda _: images, permutations="continuum")


def test_refused_permuted_arguments(images: Images) -> None:
    cases: list[dict[str, Any]] = [{"num_tasks": 0}, {"padding": -1}, {"val_size": 10**6}]
    for arguments in cases:
        with pytest.raises(ArgumentError, match=f"{next(iter(arguments))}="):
            permuted_sequence(lambda _: images, **arguments)


def test_batches_cover_an_epoch_without_repeats(images: Images) -> None:
    task = split_sequence(lambda _: images, num_tasks=3, val_size=0).tasks[0]
    batches = Batches(task, 50, torch.Generator().manual_seed(0))
    assert batches.per_epoch == 2
    sums = [float(image.double().sum()) for _ in range(2) for image in batches.draw()[0]]
    assert len(set(sums)) == 100
    x, y = batches.draw()
    assert x.shape == (50, 1, 16, 16)
    assert y.shape == (50,)


def test_batches_follow_their_generator(images: Images) -> None:
    task = split_sequence(lambda _: images, num_tasks=3, val_size=0).tasks[0]
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    first = Batches(task, 1000, generator).draw()
    generator.set_state(state)
    again = Batches(task, 1000, generator).draw()
    assert len(first[1]) == len(task.train) == 120
    assert torch.equal(first[0], again[0])
