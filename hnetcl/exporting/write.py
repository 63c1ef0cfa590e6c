"""Writes a task's network as files, and proves each of them by loading it back."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hnetcl
from hnetcl.bn import bake, layers_by_batch
from hnetcl.config import ExportFormat, require_exporters
from hnetcl.errors import ArgumentError, one_line, one_of
from hnetcl.exporting.folder import Folder
from hnetcl.exporting.formats import FORMATS, LONGEST, Loaded, quiet, traced
from hnetcl.exporting.module import Inputs, Preprocess, TaskModule
from hnetcl.model import HyperModel
from hnetcl.modes import evaluation_mode
from hnetcl.tasks import score

NAME = "network"  # of the files


@dataclass(frozen=True)
class File:
    """A written file, and what it computed when it was loaded back.

    Args:
        path: of the file that is loaded.
        size: bytes, of the code beside it too.
        score: accuracy, or R^2 of a regression; None without labels.
        differing: predictions that are not the network's own.
        distance: of its logits from the network's own, the largest over the largest of these.
    """

    path: Path
    size: int
    score: float | None
    differing: int
    distance: float


@dataclass(frozen=True)
class Export:
    """What was written.

    Args:
        score: of the network itself; the rest as in `File`.
    """

    files: tuple[File, ...]
    score: float | None


@torch.no_grad()
def export(
    model: HyperModel,
    task: int,
    out: str | Path,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    formats: Sequence[ExportFormat] = ("program", "onnx", "state"),
    preprocess: Preprocess | None = None,
    padding: int = 0,
    outputs: tuple[int, int] | None = None,
    about: Mapping[str, Any] | None = None,
    batch_size: int = 250,
) -> Export:
    """Writes a task's network as files that need no hnetcl, and a description, `export.json`.

        model = hnetcl.load("DIR", device="cpu")
        hnetcl.export(model, 1, "task_1", x)             # x [N, C, H, W], as the model takes it

    Batch norm is folded into the layer before it, weights of every algebra are real matrices: see `bn.bake`. Each file is
    loaded back and run on `images` before it is in its place; its predictions must be those of `model.plain(task)`, but for
    images whose two largest logits are the same up to rounding. All is done on the CPU, wherever the model is.

    Args:
        task: whose weights and statistics.
        out: the folder, a new or empty one, or that of an earlier export of the same network.
        images: what files are checked with, [N, ...], two at least; the files take such, in batches of any size.
        labels: of the images, int64 [N], or targets of a regression, float32 [N]; None: no accuracy is taken.
        formats: "program" (`network.pt2`), "onnx" (`network.onnx`), "state" (`network.safetensors`, `network.py`).
        preprocess: what comes before the network, and is written with it: images -> inputs. A dataclass's tensors are buffers.
        padding: zeros put around images before that.
        outputs: from which logit to before which one is written; None: all.
        about: what else the description says (plain JSON values).
        batch_size: images at a time.

    Raises:
        ArgumentError: there is no such task; the network depends on the batch, takes several inputs, or classifies by more than
            logits; torch can't trace it, or a format can't hold it; a package is missing; the folder holds something else or
            can't be written; or a file computes something else than the network.
    """
    strange = [name for name in formats if name not in FORMATS]
    if strange or not formats:
        raise one_of("formats", strange[0] if strange else "[]", FORMATS)
    require_exporters(formats)
    if not isinstance(images, Tensor) or len(images) < 2:
        what = f"{len(images)} images" if isinstance(images, Tensor) else type(images).__name__
        raise ArgumentError(
            "images", what, "must be one tensor of two images at least: a network of several inputs has no file"
        )
    if not 0 <= task < model.hnet.num_tasks:
        raise ArgumentError("task", task, f"there are tasks 0 to {model.hnet.num_tasks - 1}")
    with evaluation_mode(model):
        plain, inputs = model.plain(task).cpu().eval(), Inputs(preprocess, padding).cpu()
    images, labels = images.cpu(), None if labels is None else labels.cpu()
    if layers := layers_by_batch(plain):
        rule = f"{layers[0]} normalizes by the batch's own statistics: what comes out for a sample depends on the others"
        raise ArgumentError("bn.stats", "batch", rule)
    try:
        baked = bake(plain)
    except ValueError as error:  # virtual batch norm without a reference
        raise ArgumentError("task", task, one_line(error)) from error
    own = TaskModule(plain, inputs, outputs)
    try:
        wanted = _run(own, images, batch_size)
    except (RuntimeError, TypeError) as error:
        rule = f"{type(plain).__name__} can't take one such tensor ({one_line(error)[:LONGEST]})"
        raise ArgumentError("images", list(images.shape), rule) from error
    module = _chosen(TaskModule(baked, inputs, outputs), own, images, wanted, batch_size)
    description = {
        "hnetcl": hnetcl.__version__,
        "torch": torch.__version__,
        "task": task,
        **(about or {}),
        "input": {"name": "images", "dtype": _plain(images.dtype), "shape": ["N", *images.shape[1:]]},
        "output": {"name": "logits", "dtype": _plain(wanted.dtype), "shape": ["N", *wanted.shape[1:]]},
        "score": _score(wanted, labels),
        "checked_images": len(images),
    }
    with Folder(Path(out), _digest(own, task)) as folder:
        files = []
        for name in dict.fromkeys(formats):
            files.append(_written(folder, name, module, images, labels, wanted, batch_size, description))
        folder.finish(description)
    return Export(tuple(files), description["score"])


def _written(
    folder: Folder,
    name: str,
    module: TaskModule,
    images: Tensor,
    labels: Tensor | None,
    wanted: Tensor,
    batch_size: int,
    description: Mapping[str, Any],
) -> File:
    """Writes one format, loads it back, and compares."""
    form = FORMATS[name]
    program = traced(module, images[:2].clone(), form.learns)
    try:
        contents = form.contents(program, [*_comment(description), "", *str(module.net).splitlines()])
    except ValueError as error:
        raise ArgumentError("formats", name, f"is not possible for this network: {one_line(error)}") from error
    for suffix, content in contents.items():
        folder.write(NAME + suffix, content)
        folder.entries[NAME + suffix]["format"] = name
    try:
        with quiet():
            got = _run(form.load(folder.temporary / (NAME + form.suffix)), images, batch_size)
    except Exception as error:  # of classes of each format's own
        what = one_line(error)[:LONGEST]
        raise ArgumentError("formats", name, f"is written, but can't be loaded back and run ({what})") from error
    distance, differing = _distance(got, wanted), _differing(got, wanted)
    if not _is_same(distance, module):
        rule = f"gives other logits than the network when it is loaded back (by {distance:.1e} of the largest)"
        raise ArgumentError("formats", name, rule)
    found, file = _score(got, labels), NAME + form.suffix
    folder.entries[file] |= {"score": found, "predictions_differing": differing, "largest_difference": distance}
    return File(folder.path / file, sum(map(len, contents.values())), found, differing, distance)


def _chosen(baked: TaskModule, own: TaskModule, images: Tensor, wanted: Tensor, batch_size: int) -> TaskModule:
    """The baked module where it predicts the same for all images; else the network as it is."""
    try:
        got = _run(baked, images, batch_size)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # code that looks into layers of ours
        return own
    return baked if _is_same(_distance(got, wanted), own) and not _differing(got, wanted) else own


def _run(loaded: Loaded, images: Tensor, batch_size: int) -> Tensor:
    return torch.cat([loaded(some).detach() for some in images.split(batch_size)])


def _distance(got: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest value; infinity for what is not finite in one of both alone."""
    if got.shape != wanted.shape:
        return torch.inf
    if not wanted.isfinite().all():
        return 0.0 if torch.equal(got.isfinite(), wanted.isfinite()) else torch.inf
    apart = (got.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp_min(1e-30)
    return float(apart.nan_to_num(torch.inf))


def _differing(got: Tensor, wanted: Tensor) -> int:
    """Predictions that are not the same; a regression has none."""
    return int((got.argmax(1) != wanted.argmax(1)).sum()) if wanted.ndim == 2 else 0


def _is_same(distance: float, module: nn.Module) -> bool:
    """Whether logits are the same up to rounding: to half of the digits that the coarsest tensor of a network has."""
    floats = [value.dtype for value in (*module.parameters(), *module.buffers()) if value.is_floating_point()]
    coarsest: float = max((torch.finfo(dtype).eps for dtype in floats), default=torch.finfo(torch.float32).eps)
    return distance <= math.sqrt(coarsest)


def _score(logits: Tensor, labels: Tensor | None) -> float | None:
    """Accuracy, or R^2 where labels are targets."""
    if labels is None:
        return None
    if labels.is_floating_point():
        return float(score("mean_squared_error", logits.double(), labels.double()))
    return int((logits.argmax(1) == labels).sum()) / len(labels)


def _digest(module: TaskModule, task: int) -> str:
    """SHA-256 of a task's tensors by name, and of what is no tensor in its network, as far as it can be printed."""
    found = hashlib.sha256(f"{task} {module.inputs.padding} {module.outputs} {module}".encode())
    for name, value in module.state_dict().items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _comment(description: Mapping[str, Any]) -> list[str]:
    """What a file of code says of itself."""
    sides = description["input"], description["output"]
    facts = {key: value for key, value in description.items() if key not in ("input", "output")}
    return [
        " -> ".join(f"{side['dtype']} {side['name']} [{', '.join(map(str, side['shape']))}]" for side in sides),
        "",
        "    from safetensors.torch import load_file",
        "    from network import Network",
        "",
        "    network = Network()",
        '    network.load_state_dict(load_file("network.safetensors"))',
        "    logits = network(images)",
        "",
        *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in facts.items()),
    ]


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
