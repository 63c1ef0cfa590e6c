"""What every task sequence must do. A new sequence is a row of `SEQUENCES`, and is then tested like all others."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hnetcl.registry import find, make, names
from hnetcl.tasks import Images, TaskSequence, load_images

SEQUENCES: dict[str, dict[str, Any]] = {  # name -> what makes it small
    "permuted": {"num_tasks": 3, "val_size": 20},
    "rotated": {"num_tasks": 3, "val_size": 20, "angles": "random"},
    "split": {"num_tasks": 3, "val_size": 20, "class_order": "random"},
}
EachSequence = pytest.mark.parametrize("name", SEQUENCES)


def test_every_sequence_is_in_the_table() -> None:
    assert SEQUENCES.keys() == {n for n in names("task") if find("task", n).__module__.startswith("hnetcl.")}


def made(name: str, root: Path, seed: int = 0) -> TaskSequence:
    def load(dataset: str) -> Images:
        return load_images(dataset, root)

    sequence: TaskSequence = make("task", {"name": name, "dataset": "tiny", **SEQUENCES[name]}, load=load, seed=seed)
    return sequence


@EachSequence
def test_tasks_are_classifications_of_one_shape(name: str, data_root: Path) -> None:
    sequence = made(name, data_root)
    assert len(sequence) == 3
    for task in sequence.tasks:
        for split in (task.train, task.val, task.test):
            assert split.images.dtype == torch.uint8
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
