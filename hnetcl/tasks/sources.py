"""Image sets as tensors: from `data.root`, from the package (MNIST), or downloaded once by torchvision."""

import gzip
import json
import os
import struct
import tempfile
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hnetcl.errors import ArgumentError, one_of
from hnetcl.vision import import_torchvision

TENSORS = ("train_images", "train_labels", "test_images", "test_labels")
DOWNLOADS = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}


@dataclass(frozen=True)
class Images:
    """An image-classification set.

    Args:
        train_images, test_images: uint8 [N, C, H, W].
        train_labels, test_labels: int64 [N], from 0 to len(classes) - 1.
        classes: their names.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]

    def to(self, device: torch.device) -> "Images":
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})


def load_images(name: str, root: str | Path | None = None) -> Images:
    """The set called `name`: from `root/name.safetensors` if that is there, else from the package, else by download.

    Args:
        name: file name without its ending, or one of `DOWNLOADS`.
        root: the user's data folder. A downloaded set is kept there, or in the user's cache where root is None.

    Raises:
        ArgumentError: the folder does not exist, the file is not what it should be, or there is no such set.
    """
    if root is not None and not Path(root).is_dir():
        raise ArgumentError("root", root, "there is no such folder")
    folder = _cache() if root is None else Path(root)
    path = folder / f"{name}.safetensors"
    if path.exists():
        return _read(name, path)
    if name == "mnist":
        return _packaged_mnist()
    if name not in DOWNLOADS:
        raise one_of("dataset", name, [*DOWNLOADS, *(p.stem for p in folder.glob("*.safetensors"))])
    _download(name, path)
    return _read(name, path)


def _read(name: str, path: Path) -> Images:
    """Reads and checks a tensor file."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ArgumentError("root", path.parent, f"{path.name} is truncated or not a safetensors file ({error})") from error
    fault = _fault(tensors)
    if fault:
        raise ArgumentError("root", path.parent, f"{path.name} {fault}")
    count = 1 + int(max(tensors["train_labels"].max(), tensors["test_labels"].max()))
    classes = json.loads(metadata.get("classes", "[]")) or [str(k) for k in range(count)]
    if len(classes) < count:
        raise ArgumentError("root", path.parent, f"{path.name} names {len(classes)} classes but has labels up to {count - 1}")
    return Images(name, **{key: tensors[key] for key in TENSORS}, classes=tuple(classes))


def _fault(tensors: dict[str, Tensor]) -> str:
    """What is wrong with a file's tensors, or nothing."""
    for split in ("train", "test"):
        images, labels = tensors.get(f"{split}_images"), tensors.get(f"{split}_labels")
        if images is None or labels is None:
            return f"lacks {split}_images or {split}_labels"
        if images.ndim != 4 or images.dtype != torch.uint8:
            return f"holds {split}_images {tuple(images.shape)} {images.dtype}, expected uint8 [N, C, H, W]"
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not len(labels):
            return f"holds {split}_labels {tuple(labels.shape)} {labels.dtype}, expected int64 [{len(images)}]"
        if labels.min() < 0:
            return f"holds a negative label in {split}_labels"
    return ""


def _packaged_mnist() -> Images:
    folder = files("hnetcl.tasks") / "mnist"

    def idx(name: str) -> Tensor:
        raw = gzip.decompress((folder / name).read_bytes())
        shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
        return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy())

    return Images(
        "mnist",
        train_images=idx("train-images-idx3-ubyte.gz").unsqueeze(1),
        train_labels=idx("train-labels-idx1-ubyte.gz").long(),
        test_images=idx("t10k-images-idx3-ubyte.gz").unsqueeze(1),
        test_labels=idx("t10k-labels-idx1-ubyte.gz").long(),
        classes=tuple(str(digit) for digit in range(10)),
    )


def _download(name: str, path: Path) -> None:
    """Lets torchvision fetch a set, and writes it as a tensor file, once."""
    dataset = getattr(import_torchvision().datasets, DOWNLOADS[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        try:
            train, test = (dataset(scratch, train=is_train, download=True) for is_train in (True, False))
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ArgumentError("dataset", name, f"not at {path}, and torchvision could not download it ({reason})") from error
        tensors = {"train_images": _images(train), "test_images": _images(test)}
        tensors |= {f"{split}_labels": torch.as_tensor(d.targets).long() for split, d in (("train", train), ("test", test))}
        temporary = Path(scratch) / path.name
        save_file(tensors, temporary, metadata={"name": name, "classes": json.dumps(list(train.classes))})
        temporary.replace(path)


def _images(dataset: Any) -> Tensor:
    """torchvision keeps grey images as [N, H, W] and colour images as [N, H, W, C]."""
    data = torch.as_tensor(dataset.data)
    return (data.unsqueeze(1) if data.ndim == 3 else data.permute(0, 3, 1, 2)).contiguous()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hnetcl"
