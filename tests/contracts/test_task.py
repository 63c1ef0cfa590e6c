"""What every task sequence must do. A new sequence is a row of `SEQUENCES`, and is then tested like all others."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hnetcl.registry import find, make, names
from hnetcl.tasks import AsTheyAre, Images, TaskSequence, load_images

SEQUENCES: dict[str, dict[str, Any]] = {  # name -> what makes it small
    "gaussians": {"num_tasks": 3, "train_size": 100, "test_size": 40, "val_size": 20},
    "image_folder": {"num_tasks": 3, "val_size": 20, "class_order": "random", "test_fraction": 0.2},
    "mixed": {"datasets": ["tiny", "inverted", "tiny"], "val_size": 20},
    "permuted": {"dataset": "tiny", "num_tasks": 3, "val_size": 20},
    "regression_1d": {"num_tasks": 3, "val_size": 20},
    "rotated": {"dataset": "tiny", "num_tasks": 3, "val_size": 20, "angles": "random"},
    "split": {"dataset": "tiny", "num_tasks": 3, "val_size": 20, "class_order": "random"},
    "split_cifar10_100": {"num_tasks": 3, "val_size": 20},
}
EachSequence = pytest.mark.parametrize("name", SEQUENCES)


def test_every_sequence_is_in_the_table() -> None:
    assert SEQUENCES.keys() == {n for n in names("task") if find("task", n).__module__.startswith("hnetcl.")}


def made(name: str, root: Path, seed: int = 0) -> TaskSequence:
    def load(dataset: str) -> Images:
        if dataset.startswith("cifar"):
            return cifar(dataset)
        tiny = load_images("tiny", root)
        return (
            tiny
            if dataset == "tiny"
            else replace(tiny, train_images=255 - tiny.train_images, test_images=255 - tiny.test_images)
        )

    given = {"load": load, "seed": seed, "root": str(pictures(root)), "device": torch.device("cpu")}
    sequence: TaskSequence = make("task", {"name": name, **SEQUENCES[name]}, **given)
    return sequence


def cifar(name: str) -> Images:
    """Noise in the shape of CIFAR-10 or CIFAR-100, with twelve images of each class."""
    classes = int(name.removeprefix("cifar"))
    labels = torch.arange(classes).repeat(12)
    pixels = torch.randint(0, 256, (len(labels), 3, 8, 8), generator=torch.Generator().manual_seed(classes), dtype=torch.uint8)
    return Images(name, pixels, labels, pixels[:classes], labels[:classes], tuple(map(str, range(classes))))


def pictures(root: Path) -> Path:
    """The training images of the small set as files, written once."""
    folder = root / "pictures"
    if not folder.exists():
        images = load_images("tiny", root)
        for number, (image, label) in enumerate(zip(images.train_images, images.train_labels.tolist(), strict=True)):
            (folder / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(folder / str(label) / f"{number:03}.png")
    return folder


@EachSequence
def test_tasks_are_classifications_of_one_shape_or_regressions(name: str, data_root: Path) -> None:
    """Of images, or of points, which are used as they are."""
    sequence = made(name, data_root)
    assert len(sequence) == 3
    for task in sequence.tasks:
        for split in (task.train, task.val, task.test):
            assert split.images.dtype == (torch.float32 if isinstance(task.preprocess, AsTheyAre) else torch.uint8)
            if sequence.loss == "mean_squared_error":
                assert split.labels.dtype == torch.float32
                continue
            assert split.labels.dtype == torch.int64
            assert set(split.labels.tolist()) <= set(range(sequence.num_classes))
        x = task.preprocess(task.test.images[:5])
        assert x.shape == (5, *task.preprocess(task.test.images[:1]).shape[1:])
        assert x.dtype == torch.float32
        assert x.isfinite().all()
        assert torch.equal(x[2], task.preprocess(task.test.images[2:3])[0])  # an image is the same in any batch


@EachSequence
def test_a_seed_gives_the_same_tasks_and_another_others(name: str, data_root: Path) -> None:
    """In files that tell whether two runs saw the same: the manifest is plain JSON."""
    first, again, other = (json.dumps(made(name, data_root, seed).manifest()) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    pixels = [made(name, data_root, seed)[1].preprocess(made(name, data_root, seed)[1].test.images[:3]) for seed in (0, 0)]
    assert torch.equal(*pixels)


@EachSequence
def test_tasks_differ(name: str, data_root: Path) -> None:
    tasks = made(name, data_root).tasks
    seen = [task.preprocess(task.test.images[:4]) for task in tasks]
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


@EachSequence
def test_validation_images_are_held_out(name: str, data_root: Path) -> None:
    for task in made(name, data_root).tasks:
        assert len(task.val) == 20
        train = {image.numpy().tobytes() for image in task.train.images}
        assert not any(image.numpy().tobytes() in train for image in task.val.images)


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 211.5])
def test_rotation_is_torchvisions(angle: float) -> None:
    """Also of images that are no squares."""
    from hnetcl.tasks.rotated import Rotate
    from hnetcl.vision import import_torchvision

    import_torchvision()
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import rotate

    images = torch.randint(0, 256, (3, 2, 12, 17), dtype=torch.uint8)
    mean, std = torch.zeros(2, 1, 1), torch.full((2, 1, 1), 1 / 255)
    expected = rotate(images.float(), angle, interpolation=InterpolationMode.BILINEAR)
    torch.testing.assert_close(Rotate(mean, std, angle=angle)(images), expected, rtol=0, atol=0.01)
