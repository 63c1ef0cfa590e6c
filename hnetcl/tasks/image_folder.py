"""A folder of images as a split sequence: each subfolder is a class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.memory import require
from hnetcl.registry import register
from hnetcl.tasks.augmentation import Augmentation
from hnetcl.tasks.images import Images, faulty_names, image_set
from hnetcl.tasks.pictures import alike, read_picture
from hnetcl.tasks.pixels import Constants, Preprocessing
from hnetcl.tasks.sequence import TaskSequence
from hnetcl.tasks.sources import data_folder
from hnetcl.tasks.split import ClassesPerTask, split_sequence
from hnetcl.tasks.task import derive_seed


@register("task", "image_folder")
def image_folder_sequence(
    root: str | None,
    device: torch.device,
    seed: int = 0,
    *,
    size: Annotated[int, Ge(1)] | None = None,
    test_fraction: Annotated[float, Gt(0), Lt(1)] | None = None,
    num_tasks: Annotated[int, Ge(1)] = 5,
    classes_per_task: ClassesPerTask = 2,
    class_order: Literal["natural", "random", "icarl"] | list[int] = "natural",
    padding: Annotated[int, Ge(0)] = 0,
    preprocess: Preprocessing = "standardized",
    mean: Constants = None,
    std: Constants = None,
    augment: Augmentation = "none",
    val_size: Annotated[int, Ge(0)] = 500,
) -> TaskSequence:
    """The images of `root/train/CLASS/` and `root/test/CLASS/`, or of `root/CLASS/`, split as `split_sequence` does.

    Classes are in the order of their names. Where any image has colours, grey ones have their channel three times.

    Args:
        root: the folder.
        device: where the images are to be used.
        size: height and width that every image is brought to; None: all have the same already.
        test_fraction: share of each class that is for tests, one image at least, where there is no `root/test`. Which these are
            is the same for all seeds.

    Raises:
        ArgumentError: the folder is not like that; a file that can't be read as an image; images of several shapes; and what
            `split_sequence` refuses.
    """
    images = read_folder(root, size, test_fraction).to(device)
    sequence: TaskSequence = split_sequence(
        lambda _: images,
        seed,
        dataset=images.name,
        num_tasks=num_tasks,
        classes_per_task=classes_per_task,
        class_order=class_order,
        padding=padding,
        preprocess=preprocess,
        mean=mean,
        std=std,
        augment=augment,
        val_size=val_size,
    )
    return sequence


def read_folder(root: str | Path | None, size: int | None, test_fraction: float | None) -> Images:
    """The images of a folder; the rest as in `image_folder_sequence`."""
    if root is None:
        raise ArgumentError("root", root, "name the folder with the images: data.root=FOLDER")
    folder = data_folder(root)
    if not folder.is_dir():
        raise ArgumentError("root", root, "there is no such folder")
    parts = [folder / "train", folder / "test"]
    apart = all(part.is_dir() for part in parts)
    if apart == (test_fraction is not None):
        rule = "goes unused: the folder has train and test" if apart else "is missing: the folder has not both train and test"
        raise ArgumentError("test_fraction", test_fraction, rule)
    train, test = (_listed(part) for part in parts) if apart else _parted(_listed(folder), test_fraction or 0.0)
    names = sorted({*train, *test})
    if size is not None:
        require("size", size, 2.0 * size**2 * sum(len(paths) for of in (train, test) for paths in of.values()))
    pictures = alike([read_picture(path, size) for of in (train, test) for paths in of.values() for path in paths])
    paths = [path for of in (train, test) for paths in of.values() for path in paths]
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            rule = (
                f"is of shape {tuple(picture.shape)}, and {paths[0].name} of {tuple(pictures[0].shape)}; allowed: task.size=N"
            )
            raise ArgumentError("root", path, rule)
    require("size", size, 2.0 * len(pictures) * (pictures[0].numel() if pictures else 0))
    labels = [torch.tensor([names.index(c) for c, found in of.items() for _ in found]) for of in (train, test)]
    count = len(labels[0])
    tensors: dict[str, Tensor] = {"train_images": _stacked(pictures[:count]), "test_images": _stacked(pictures[count:])}
    tensors |= {"train_labels": labels[0], "test_labels": labels[1]}
    try:
        return image_set(folder.resolve().name, tensors, names, str(folder))
    except ArgumentError as error:
        raise ArgumentError("root", root, error.allowed) from error


def _stacked(pictures: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(pictures)).contiguous()


def _listed(folder: Path) -> dict[str, list[Path]]:
    """The files of each class. Names that begin with a dot do not count.

    Raises:
        ArgumentError: no classes; a class without files; a file beside the classes, or a folder inside of one.
    """
    found = {}
    for entry in _entries(folder):
        if not entry.is_dir():
            raise ArgumentError("root", entry, "is a file, but classes are folders")
        found[entry.name] = _entries(entry)
        if not found[entry.name]:
            raise ArgumentError("root", entry, "is a class without images")
        for inner in found[entry.name]:
            if inner.is_dir():
                raise ArgumentError("root", inner, "is a folder inside of a class; allowed: images")
            if inner.exists() and not inner.is_file():
                raise ArgumentError("root", inner, "is no file; allowed: images")
    if not found:
        raise ArgumentError("root", folder, "holds no folders, one for each class")
    if fault := faulty_names(list(found)):
        raise ArgumentError("root", folder, fault)
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise ArgumentError("root", folder, f"can't be read ({error})") from error


def _parted(classes: dict[str, list[Path]], fraction: float) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """The files for training, and those for tests."""
    train, test = {}, {}
    for name, paths in classes.items():
        if len(paths) < 2:
            raise ArgumentError("root", paths[0].parent, "holds one image, but training and test take one each at least")
        held = min(len(paths) - 1, max(1, round(fraction * len(paths))))
        order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(derive_seed(0, "test", name))).tolist()
        chosen = set(order[:held])
        train[name] = [path for place, path in enumerate(paths) if place not in chosen]
        test[name] = [path for place, path in enumerate(paths) if place in chosen]
    return train, test
