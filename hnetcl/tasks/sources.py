"""Image sets as tensors: from `data.root`, from the package (MNIST), or downloaded once by torchvision."""

import gzip
import json
import os
import struct
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hnetcl.errors import ArgumentError, one_of
from hnetcl.tasks.images import Images, image_set, read_names
from hnetcl.vision import import_torchvision

DOWNLOADS = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}


def load_images(name: str, root: str | Path | None = None) -> Images:
    """The set called `name`: from `root/name.safetensors` if that is there, else from the package, else by download.

    Args:
        name: file name without its ending, or one of `DOWNLOADS`.
        root: the user's data folder; `~` is the user's home. A downloaded set is kept there, or in the user's cache where root
            is None. The packaged set needs neither home nor cache.

    Raises:
        ArgumentError: the folder does not exist or can't be read, the file is not what it should be, or there is no such set.
    """
    if root is None and name == "mnist":
        return _packaged_mnist()
    folder = _cache() if root is None else data_folder(root)
    path = folder / f"{name}.safetensors"
    try:
        if root is not None and not folder.is_dir():
            raise ArgumentError("root", root, "there is no such folder")
        if path.exists():
            return _read(name, path)
        if name == "mnist":
            return _packaged_mnist()
        if name not in DOWNLOADS:
            raise one_of("dataset", name, [*DOWNLOADS, *(p.stem for p in folder.glob("*.safetensors"))])
        _download(name, path)
    except OSError as error:
        raise ArgumentError("root", folder, f"{path.name} can't be read or written there ({error})") from error
    return _read(name, path)


def data_folder(root: str | Path) -> Path:
    """The user's data folder, with `~` as the user's home.

    Raises:
        ArgumentError: nobody knows where that home is.
    """
    try:
        return Path(root).expanduser()
    except RuntimeError as error:
        raise ArgumentError("root", root, f"there is no such home ({error})") from error


def _read(name: str, path: Path) -> Images:
    """Reads and checks a tensor file."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ArgumentError("root", path.parent, f"{path.name} is truncated or not a safetensors file ({error})") from error
    try:
        return image_set(name, tensors, read_names(metadata.get("classes")), str(path))
    except ArgumentError as error:
        raise ArgumentError("root", path.parent, f"{path.name} {error.allowed}") from error
    except ValueError as error:
        raise ArgumentError("root", path.parent, f"{path.name} {error}") from error


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
    folder = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(folder or Path.home() / ".cache") / "hnetcl"
    except RuntimeError as error:
        rule = f"name a folder with the images, for there is no home to keep downloads in ({error})"
        raise ArgumentError("root", None, rule) from error
