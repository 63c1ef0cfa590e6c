"""What an image set is: its tensors, and which of its labels are classes."""

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from hnetcl.errors import ArgumentError

TENSORS = ("train_images", "train_labels", "test_images", "test_labels")
INTEGERS = {
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
}
SHOWN = 8  # names in a message
UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}  # control characters, lone surrogates, line and paragraph separators


@dataclass(frozen=True)
class Images:
    """An image-classification set.

    Args:
        name: for people, and for `task.dataset`.
        train_images, test_images: uint8 [N, C, H, W], with the same C, H and W.
        train_labels, test_labels: int64 [N], from 0 to len(classes) - 1.
        classes: their names, all different.
        origin: where the set comes from, for messages.
        left_out: classes that the set's file knows, but has no training images of.

    Raises:
        ArgumentError: a tensor of another shape or dtype, a split without images, labels outside the classes, or names that
            can't be told apart or printed.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    origin: str = ""
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        tensors = {name: getattr(self, name) for name in TENSORS}
        fault = faulty_tensors(tensors) or faulty_names(self.classes)
        if fault:
            raise ArgumentError("images", self.name, fault)
        for name in ("train_labels", "test_labels"):
            highest = int(tensors[name].max())
            if tensors[name].dtype != torch.int64 or highest >= len(self.classes):
                found = f"{tensors[name].dtype} up to {highest}"
                raise ArgumentError("images", self.name, f"holds {name} {found}, expected int64 below {len(self.classes)}")

    def to(self, device: torch.device) -> "Images":
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})


Load = Callable[[str], Images]
"""An image set's name -> its images."""


def image_set(name: str, tensors: Mapping[str, Tensor], names: Sequence[str] | None = None, origin: str = "") -> Images:
    """An image set of whatever labels a file has: its classes are the labels that training images have, in their order.

    So labels may begin anywhere and have gaps; in the set they are numbered from 0. Labels of any integer dtype are converted.

    Args:
        name: of the set.
        tensors: `TENSORS`, by name.
        names: the name of label k in place k; None: a label is its own name.
        origin: for messages.

    Raises:
        ArgumentError: what `Images` refuses; a label without a name; or test images of a class that has no training images.
    """
    fault = faulty_tensors(tensors) or (faulty_names(names) if names is not None else "")
    if fault:
        raise ArgumentError("images", name, fault)
    train, test = tensors["train_labels"].long(), tensors["test_labels"].long()
    present, train = train.unique(return_inverse=True)  # never as large as the labels are high
    labels = present.tolist()
    highest = max(labels[-1], int(test.max()))
    if names is not None and highest >= len(names):
        raise ArgumentError("images", name, f"names {len(names)} classes but has labels up to {highest}")
    place = torch.searchsorted(present, test).clamp(max=len(present) - 1)
    strangers = [_named(label, names) for label in test[present[place] != test].unique().tolist()]
    if strangers:
        raise ArgumentError("images", name, f"has test images of {listed(strangers)}, but no training images")
    return Images(
        name,
        tensors["train_images"],
        train,
        tensors["test_images"],
        place,
        classes=tuple(_named(label, names) for label in labels),
        origin=origin,
        left_out=_left_out(labels, names),
    )


def read_names(text: str | None) -> list[str] | None:
    """The class names of a file's metadata, a JSON list of strings; None where there are none.

    Raises:
        ValueError: it is anything else.
    """
    if text is None:
        return None
    try:
        names = json.loads(text)
    except ValueError as error:
        raise ValueError(f"has metadata `classes` that is not JSON ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("has metadata `classes` that is not a list of strings")
    return names or None


def faulty_tensors(tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with a set's tensors, or nothing."""
    for split in ("train", "test"):
        images, labels = tensors.get(f"{split}_images"), tensors.get(f"{split}_labels")
        if images is None or labels is None:
            return f"lacks {split}_images or {split}_labels"
        if images.ndim != 4 or images.dtype != torch.uint8:
            return f"holds {split}_images {tuple(images.shape)} {images.dtype}, expected uint8 [N, C, H, W]"
        if not len(images):
            return f"has no {split} images"
        if not images[0].numel():
            return f"holds {split}_images {tuple(images.shape)}: an image needs channels, height and width"
        if labels.dtype not in INTEGERS or labels.shape != images.shape[:1]:
            expected = f"expected int64 [{len(images)}], or another integer dtype"
            return f"holds {split}_labels {tuple(labels.shape)} {labels.dtype}, {expected}"
        if labels.long().min() < 0:
            return f"holds a negative label in {split}_labels"
    shapes = [tuple(tensors[f"{split}_images"].shape[1:]) for split in ("train", "test")]
    if shapes[0] != shapes[1]:
        return f"holds training images of shape {shapes[0]}, but test images of shape {shapes[1]}"
    return ""


def faulty_names(names: Sequence[str]) -> str:
    """What is wrong with the names of classes, or nothing."""
    seen = set()
    for name in names:
        if not name.strip() or any(unicodedata.category(letter) in UNPRINTABLE for letter in name):
            return f"names a class {name!a}, which can't be printed on one line"
        if name in seen:
            return f"names two classes {name!r}"
        seen.add(name)
    return ""


def listed(names: Sequence[str]) -> str:
    """`class 'a'`, or `classes 'a', 'b'`, not too many of them."""
    shown = ", ".join(map(repr, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return f"class{'es' if len(names) > 1 else ''} {shown}"


def _named(label: int, names: Sequence[str] | None) -> str:
    return str(label) if names is None else names[label]


def _left_out(labels: Sequence[int], names: Sequence[str] | None) -> tuple[str, ...]:
    """The names that no training image has; without names, the gaps between the labels."""
    if names is not None:
        present = set(labels)
        return tuple(name for label, name in enumerate(names) if label not in present)
    gaps = [(low + 1, high - 1) for low, high in pairwise(labels) if high > low + 1]
    return tuple(str(first) if first == last else f"{first} to {last}" for first, last in gaps)
