"""Sequences of what users bring: torch datasets, folders of images, several sets; and augmentation."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from stops import Stops
from torch import Tensor
from torch.utils.data import TensorDataset

from hnetcl.build import build_sequence
from hnetcl.cli.jobs import train
from hnetcl.config import Config
from hnetcl.errors import ArgumentError
from hnetcl.registry import make, register
from hnetcl.tasks import Batches, Images, TaskSequence, load_images, split_sequence
from hnetcl.tasks.augmentation import PADDING, augmented

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(data_root: Path) -> Images:
    return load_images("tiny", data_root)


class Items:
    """A dataset of given items."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.items[number]


def split_in_tasks(images: Images, form: Callable[[Tensor], Any], split: str) -> list[Items]:
    """Three datasets of two classes each, with the set's own labels and something behind them."""
    pixels, labels = getattr(images, f"{split}_images"), getattr(images, f"{split}_labels")
    chosen = [labels // 2 == t for t in range(3)]
    return [
        Items(*((form(x), int(y), t) for x, y in zip(pixels[mask], labels[mask], strict=True))) for t, mask in enumerate(chosen)
    ]


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda x: x,
    "plane": lambda x: x[0],
    "to_tensor": lambda x: x.float() / 255,
    "double": lambda x: x.double() / 255,
    "array": lambda x: x.permute(1, 2, 0).numpy(),
    "pil": lambda x: Image.fromarray(x[0].numpy()),
}


@pytest.mark.parametrize("form", FORMS)
def test_datasets_give_the_same_sequence(form: str, images: Images) -> None:
    """Whatever kind their images are of, as when the whole set is split."""
    expected = split_sequence(lambda _: images, num_tasks=3, val_size=20, seed=4)
    data = [split_in_tasks(images, FORMS[form], split) for split in ("train", "test")]
    found = TaskSequence.from_datasets(*data, val_size=20, seed=4)
    assert found.manifest()["tasks"] == expected.manifest()["tasks"]


def test_datasets_of_torch_and_their_names(images: Images) -> None:
    data = [TensorDataset(images.train_images, images.train_labels)], [TensorDataset(images.test_images, images.test_labels)]
    sequence = TaskSequence.from_datasets(*data, classes=list("abcdef"), preprocess="none", augment="crop_flip")
    assert sequence[0].classes == tuple("abcdef")
    assert torch.equal(sequence[0].train.images, images.train_images)
    assert sequence.manifest()["tasks"][0]["augment"] == "crop_flip"


GOOD = [(torch.full((1, 4, 4), 9, dtype=torch.uint8), y) for y in (0, 1)]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], r"test=1 datasets: must be as many as the 0 of train"),
        ([Items()], r"train\[0\]=Items: is empty"),
        ([iter(GOOD)], r"train\[0\]=list_iterator: has no length"),
        ([Items(*GOOD, (torch.full((1, 4, 4), 0.123), 0))], r"train\[0\]\[2\]=tuple: has values that are not k / 255"),
        ([Items(*GOOD, (torch.full((1, 4, 4), torch.nan), 0))], "has values that are not k / 255"),
        ([Items(*GOOD, (torch.zeros(1, 4, 4, dtype=torch.int64), 0))], "is of torch.int64, expected uint8"),
        ([Items(*GOOD, ("a picture", 0))], "is a str, expected a PIL image, a tensor or an array"),
        ([Items(*GOOD, (GOOD[0][0], "cat"))], r"invalid literal .*; an item is \(image, label, ...\)"),
        ([Items(*GOOD, (GOOD[0][0], 0.5))], "has the label 0.5, which is no whole number"),
        ([Items(*GOOD, (GOOD[0][0], "1"))], "has the label '1', which is no whole number"),
        ([Items(*GOOD, (GOOD[0][0], 2**70))], "has the label 1180591620717411303424, which is no whole number"),
        ([Items(*GOOD, (GOOD[0][0], torch.inf))], r"cannot convert float infinity to integer; an item is"),
        ([Items(*GOOD, (torch.zeros(4, 4).to_sparse(), 0))], "is torch.sparse_coo, expected a dense tensor"),
        ([Items(*GOOD, 7)], r"an item is \(image, label, ...\)"),
        ([Items(*GOOD, (torch.zeros(1, 4, 5, dtype=torch.uint8), 0))], r"is of shape \(1, 4, 5\), but image 0 of \(1, 4, 4\)"),
        ([Items(GOOD[0], GOOD[0])], "train=task 0: has test images of class '1', but no training images"),
        ([Items(*GOOD, (GOOD[0][0], -1))], "holds a negative label in train_labels"),
    ],
)
def test_refused_datasets(train: list[Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        TaskSequence.from_datasets(train, [Items(*GOOD)])
    assert "\n" not in str(caught.value)


def write(root: Path, images: Images, *, apart: bool, colours: bool = False) -> Path:
    for split in ("train", "test"):
        pixels, labels = getattr(images, f"{split}_images")[:60], getattr(images, f"{split}_labels")[:60]
        for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            folder = root / split / f"class{label}" if apart else root / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(image[0].numpy())
            (picture.convert("RGB") if colours and number == 0 else picture).save(folder / f"{split}{number:03}.png")
    return root


def test_a_folder_of_images(tmp_path: Path, images: Images, compose: Callable[..., Config]) -> None:
    """By command line words: what the files hold, in the order of their names."""
    root = write(tmp_path, images, apart=True)
    config = compose("task=image_folder", f"data.root={root}", "task.num_tasks=3", "task.val_size=0", "task.preprocess=none")
    sequence = build_sequence(config, CPU)
    assert [task.classes for task in sequence.tasks] == [("class0", "class1"), ("class2", "class3"), ("class4", "class5")]
    expected = images.train_images[:60][images.train_labels[:60] == 2]
    assert torch.equal(sequence[1].train.images[sequence[1].train.labels == 0], expected)
    assert sequence.name == f"split_{tmp_path.name}"


def test_folders_may_mix_grey_and_colours_and_leave_tests_to_a_fraction(tmp_path: Path, images: Images) -> None:
    root = write(tmp_path, images, apart=False, colours=True)

    def made(seed: int) -> TaskSequence:
        own = {"name": "image_folder", "num_tasks": 3, "val_size": 0, "test_fraction": 0.2, "size": 8}
        sequence: TaskSequence = make("task", own, root=str(root), device=CPU, seed=seed)
        return sequence

    sequence = made(0)
    assert sequence.in_shape == (3, 8, 8)
    assert {len(task.train) for task in sequence.tasks} == {32}
    assert {len(task.test) for task in sequence.tasks} == {8}
    assert torch.equal(sequence[0].test.images, made(5)[0].test.images)
    assert torch.equal(sequence[1].train.images[:, 0], sequence[1].train.images[:, 2])


def _empty_class(root: Path) -> None:
    (root / "train" / "class9").mkdir()


def _corrupt(root: Path) -> None:
    path = root / "train" / "class0" / "train000.png"
    path.write_bytes(path.read_bytes()[:60])


def _transparent(root: Path) -> None:
    Image.new("RGBA", (16, 16), (1, 2, 3, 100)).save(root / "test" / "class1" / "a.png")


def _sixteen_bits(root: Path) -> None:
    Image.fromarray(np.full((16, 16), 700, np.uint16)).save(root / "test" / "class1" / "a.png")


def _one_image(root: Path) -> None:
    """Of the first two classes."""
    for path in (path for folder in ("class0", "class1") for path in sorted((root / "train" / folder).iterdir())[1:]):
        path.unlink()


FAULTS: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "no image": (lambda r: (r / "train/class0/a.png").write_text("text"), {}, "a.png: is not an image that Pillow can read"),
    "a truncated image": (_corrupt, {}, "train000.png: can't be read"),
    "an empty class": (_empty_class, {}, "class9: is a class without images"),
    "a file beside the classes": (lambda r: (r / "train" / "a.txt").write_text(""), {}, "a.txt: is a file, but classes are"),
    "a folder in a class": (lambda r: (r / "train/class0/more").mkdir(), {}, "more: is a folder inside of a class"),
    "another shape": (
        lambda r: Image.new("L", (9, 9)).save(r / "train/class0/a.png"),
        {},
        r"is of shape \(1, 16, 16\), and a.png of \(1, 9, 9\); allowed: task.size=N",
    ),
    "half transparent": (_transparent, {}, "a.png: is partly transparent"),
    "several frames": (
        lambda r: Image.new("L", (16, 16)).save(
            r / "train/class0/a.gif", save_all=True, append_images=[Image.new("L", (16, 16), 9)]
        ),
        {},
        "a.gif: has 2 frames; allowed: one",
    ),
    "a pipe": (lambda r: os.mkfifo(r / "train/class0/a.png"), {}, "a.png: is no file"),
    "a name of two lines": (lambda r: (r / "train/class0/a\nb").write_text("text"), {}, r"a\\nb: is not an image"),
    "a class of no letters": (
        lambda r: (r / "train/class0").rename(r / "train/\udcff"),
        {},
        "which can't be printed on one line",
    ),
    "too large": (lambda r: None, {"size": 10**6}, "size=1000000: not enough memory"),
    "16 bits": (_sixteen_bits, {}, "a.png: is of Pillow's mode I;16"),
    "unused fraction": (lambda r: None, {"test_fraction": 0.5}, "test_fraction=0.5: goes unused"),
    "tests only": (lambda r: (r / "train").rename(r / "other"), {}, "test_fraction=None: is missing"),
    "one image": (_one_image, {"val_size": 1}, r"val_size=1: must be from 0 to 0 \(a task has 2 images\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_folders_are_told(fault: str, tmp_path: Path, images: Images) -> None:
    spoil, own, message = FAULTS[fault]
    root = write(tmp_path, images, apart=True)
    spoil(root)
    values = {"name": "image_folder", "num_tasks": 3, "val_size": 0, **own}
    with pytest.raises(ArgumentError, match=message) as caught:
        make("task", values, root=str(root), device=CPU, seed=0)
    assert "\n" not in str(caught.value)


def a_set(name: str, shape: tuple[int, int, int], classes: int) -> Images:
    generator = torch.Generator().manual_seed(len(name))
    labels = torch.arange(classes).repeat(6)
    pixels = torch.randint(0, 256, (len(labels), *shape), generator=generator, dtype=torch.uint8)
    return Images(name, pixels, labels, pixels[:classes], labels[:classes], tuple(map(str, range(classes))), name)


SETS = {
    "grey": a_set("grey", (1, 5, 6), 3),
    "colour": a_set("colour", (3, 8, 8), 5),
    "two": a_set("two", (2, 8, 8), 2),
    "cifar10": a_set("cifar10", (3, 4, 4), 10),
    "cifar100": a_set("cifar100", (3, 4, 4), 100),
}


def mixed(name: str = "mixed", **own: Any) -> TaskSequence:
    sequence: TaskSequence = make("task", {"name": name, "val_size": 0, **own}, load=SETS.__getitem__, seed=0)
    return sequence


def test_several_sets_come_into_one_shape() -> None:
    sequence = mixed(datasets=["grey", "colour"], preprocess="none")
    assert sequence.in_shape == (3, 8, 8)
    assert sequence.class_counts == (3, 5)
    raw = SETS["grey"].train_images
    assert all(torch.equal(sequence[0].train.images[:, c, 1:6, 1:7], raw[:, 0]) for c in range(3))
    assert sequence[0].train.images.sum() == 3 * raw.sum()
    assert torch.equal(sequence[1].train.images, SETS["colour"].train_images)
    assert [task["dataset"] for task in sequence.manifest()["tasks"]] == ["grey", "colour"]
    parted = mixed(datasets=["colour", "grey"], classes_per_task=2, fit="resize", size=4)
    assert [task.classes for task in parted.tasks] == [("0", "1"), ("2", "3"), ("0", "1")]
    assert parted.in_shape == (3, 4, 4)
    assert len({tuple(task.preprocess.mean.flatten().tolist()) for task in parted.tasks}) == 1


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"datasets": ["two", "colour"]}, "datasets=two: has 2 channels, and another set 3"),
        (
            {"datasets": ["grey", "colour"], "size": 6},
            r"size=6: colour has images of \(8, 8\), which can't be padded to \(6, 6\)",
        ),
        (
            {"datasets": ["grey", "colour"], "classes_per_task": 4},
            "classes_per_task=4: must be from 2 to 3, the classes of grey",
        ),
        ({"datasets": []}, "datasets=.*: must not be empty"),
    ],
)
def test_refused_mixtures(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        mixed(**own)


def test_a_missing_set_of_a_mixture_is_named_by_its_own_key(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"^datasets=mnits: did you mean mnist"):
        make("task", {"name": "mixed", "datasets": ["mnits"]}, load=lambda name: load_images(name, str(tmp_path)), seed=0)


def test_cifar_10_then_100() -> None:
    sequence = mixed("split_cifar10_100")
    assert sequence.class_counts == (10,) * 6
    assert torch.equal(sequence[0].train.images, SETS["cifar10"].train_images)
    for t in range(1, 6):
        assert sequence[t].classes == tuple(map(str, range(10 * (t - 1), 10 * t)))
    used = torch.cat([task.train.images for task in sequence.tasks]).double() / 255
    torch.testing.assert_close(sequence[3].preprocess.mean.flatten().double(), used.mean((0, 2, 3)))
    with pytest.raises(ArgumentError, match="num_tasks=12: must be at least 2 and at most 11"):
        mixed("split_cifar10_100", num_tasks=12)


def test_crops_and_mirrors_are_each_images_own() -> None:
    """Each is a window of the padded image, mirrored or not; all windows come, and the generator says which."""
    image = torch.arange(1, 26, dtype=torch.uint8).reshape(1, 1, 5, 5)
    batch = image.repeat(4000, 1, 1, 1)
    found = augmented(batch, "crop_flip", torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image[0, 0], [PADDING] * 4)
    places = range(2 * PADDING + 1)
    windows = {padded[i : i + 5, j : j + 5].numpy().tobytes() for i in places for j in places}
    windows |= {padded[i : i + 5, j : j + 5].flip(1).contiguous().numpy().tobytes() for i in places for j in places}
    assert {each.numpy().tobytes() for each in found[:, 0]} == windows
    assert torch.equal(found, augmented(batch, "crop_flip", torch.Generator().manual_seed(0)))
    assert augmented(batch, "none", torch.Generator()) is batch


def test_only_training_batches_are_augmented(images: Images) -> None:
    plain, changed = (
        split_sequence(lambda _: images, num_tasks=3, val_size=20, augment=kind) for kind in ("none", "crop_flip")
    )
    drawn = [Batches(s[0], 16, torch.Generator().manual_seed(0)).draw() for s in (plain, changed)]
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert not torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(plain[0].preprocess(plain[0].test.images), changed[0].preprocess(changed[0].test.images))


@pytest.mark.usefixtures("users_parts")
def test_an_augmented_run_goes_on_as_it_was(tiny: list[str], compose: Callable[..., Config], tmp_path: Path) -> None:
    own = [*tiny, "task.augment=crop_flip", "trainer.steps=6", "observers=[]", "trainer.threads=1"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(compose(*own, f"run.dir={whole}"))
    Stops.lives = 0
    register("observer", "stops")(Stops)
    with pytest.raises(SystemExit):
        train(compose(*own, f"run.dir={halves}", "observers=[stops]"))
    train(compose(*own, f"run.dir={halves}", "resume=true"))
    first, second = (load_file(run / "model.safetensors") for run in (whole, halves))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert '"augment": "crop_flip"' in (whole / "tasks.json").read_text()
