"""A finished run's model in Python."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

import hnetcl
from hnetcl import registry
from hnetcl.bn import batchnorm_layers
from hnetcl.cli.jobs import train
from hnetcl.config import Config
from hnetcl.errors import ArgumentError
from hnetcl.tasks import image_set, load_images, split_sequence
from hnetcl.training import RunDirectory

pytestmark = pytest.mark.usefixtures("users_parts")
NET = """
import hnetcl
from torch import nn


@hnetcl.register("net", "spectral")
def spectral(in_shape, num_outputs):
    first = nn.utils.parametrizations.spectral_norm(nn.Linear(256, 16))
    return nn.Sequential(nn.Flatten(), first, nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, num_outputs))
"""


@pytest.mark.parametrize("kind", ["bn=quaternion", "bn.stats=distilled", "net=spectral", "hnet=direct"])
def test_the_model_of_a_run_is_what_the_run_evaluated(
    kind: str, tiny: list[str], data_root: Path, compose: Callable[..., Config], tmp_path: Path
) -> None:
    """With the run's directory alone, its data gone: the recorded accuracies, from the model and from each task's network."""
    (tmp_path / "nets.py").write_text(NET)
    imports = [str(tmp_path / "nets.py")] if kind == "net=spectral" else []
    dropped = {"net=spectral": ("net.",), "hnet=direct": ("hnet.",)}.get(kind, ())
    more = [f"imports={imports}"] if imports else []
    values = [value for value in tiny if not (dropped and value.startswith(dropped))]
    run = train(compose(kind, *values, *more, f"run.dir={tmp_path / 'run'}"))
    directory = RunDirectory(run)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(str(data_root), "/nowhere"))
    directory.save_model(load_file(directory.model))  # as if the run had written that
    model = hnetcl.load(run, imports=imports)
    assert not model.training
    recorded = directory.read_accuracy()[-1]
    sequence = split_sequence(lambda _: load_images("tiny", data_root), num_tasks=3, val_size=20)
    for number, task in enumerate(sequence.tasks):
        facts = directory.read_tasks()[number]
        x = (task.test.images / 255 - facts["mean"][0]) / facts["std"][0]
        plain = model.plain(number)
        assert all(layer.num_stats <= 1 for layer in batchnorm_layers(plain).values())
        for logits in (model(x, number), plain.eval()(x)):
            assert float((logits.argmax(1) == task.test.labels).double().mean()) == recorded[number]


def test_what_is_no_finished_run_is_told(tiny: list[str], compose: Callable[..., Config], tmp_path: Path) -> None:
    for folder in (tmp_path, "~nouser/x"):
        with pytest.raises(ArgumentError, match=r"^run=.*: holds no run"):
            hnetcl.load(folder)
    run = train(compose(*tiny, "trainer.steps=2", f"run.dir={tmp_path / 'run'}"))
    path = run / "model.safetensors"
    tensors = load_file(path)
    for content in (path.read_bytes()[:100], None):
        path.unlink()
        if content:
            path.write_bytes(content)
        with pytest.raises(ArgumentError, match=r"^run=.*: can't be reloaded: model.safetensors is (missing|damaged)"):
            hnetcl.load(run)
    assert torch.is_tensor(tensors["hnet.embedding"])
    with pytest.raises(ArgumentError, match=r"^device=tpu: not available"):
        hnetcl.load(run, device="tpu")


TASK = {"shape": [1, 16, 16], "classes": ["a", "b"], "mean": [0.5], "std": [0.5]}


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"shape": shape}
            for shape in ("abc", [1, 16.0, 16], [16, 16], [1, -16, -16], [1, 10**9, 10**9], [[1], 16, 16], None)
        ),
        *({"classes": classes} for classes in (None, "ab", ["a"], [1, 2])),
    ],
)
def test_tasks_of_wrong_types_are_told(
    change: dict[str, Any], tiny: list[str], compose: Callable[..., Config], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(compose(*tiny)))))
    (tmp_path / "tasks.json").write_text(json.dumps({"tasks": [TASK, TASK | change]}))
    RunDirectory(tmp_path).save_model({})
    with pytest.raises(
        ArgumentError, match=r"^run=.*: can't be reloaded: tasks.json is damaged \(task 1 has (shape|classes) .*"
    ):
        hnetcl.load(tmp_path)
    lacking = {name: value for name, value in TASK.items() if name not in change}
    for tasks in ([], [lacking]):
        (tmp_path / "tasks.json").write_text(json.dumps({"tasks": tasks}))
        RunDirectory(tmp_path).save_model({})
        with pytest.raises(ArgumentError, match=r"^run=.*: can't be reloaded: tasks.json"):
            hnetcl.load(tmp_path)


def test_tensors_of_wrong_types_are_told(tiny: list[str], compose: Callable[..., Config], tmp_path: Path) -> None:
    """Of the hypernetwork, of statistics, and of the rows of other buffers."""
    (tmp_path / "nets.py").write_text(NET)
    imports = [str(tmp_path / "nets.py")]
    values = [value for value in tiny if not value.startswith("net.")]
    more = ["net=spectral", f"imports={imports}", "trainer.steps=2", f"run.dir={tmp_path / 'run'}"]
    run = train(compose(*more, *values))
    path = run / "model.safetensors"
    tensors = load_file(path)
    rows = next(name for name in tensors if name.startswith("buffers."))
    for name, value, fault in (
        ("hnet.embedding", tensors["hnet.embedding"].long(), "is of torch.int64, expected torch.float32"),
        ("net.2.running_mean", tensors["net.2.running_mean"].double(), "is of torch.float64, expected torch.float32"),
        (rows, tensors[rows].half(), "is of torch.float16, expected torch.float32"),
        ("net.2.running_mean", torch.tensor(0.0), r"has shape \(\), expected \(3, 16\)"),
        (rows, torch.tensor(0.0), "has shape "),
    ):
        RunDirectory(run).save_model(tensors | {name: value})
        with pytest.raises(ArgumentError, match=rf"^run=.*: can't be reloaded: model.safetensors is damaged \({name} {fault}"):
            hnetcl.load(run, imports=imports)


def test_a_network_of_the_users_own_must_be_registered(tiny: list[str], compose: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NET.replace('"spectral"', '"gone"'))
    values = [value for value in tiny if not value.startswith("net.")]
    imports = f"imports=[{tmp_path / 'nets.py'}]"
    run = train(compose("net=gone", imports, *values, "trainer.steps=2", f"run.dir={tmp_path / 'run'}"))
    del registry._registered["net"]["gone"]
    with pytest.raises(ArgumentError, match=r"^net.name=gone: allowed: .*torchvision.*; the run had imports=\[.*nets.py\]"):
        hnetcl.load(run)


def test_labels_of_no_integer_dtype_are_told() -> None:
    tensors = {f"{split}_images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8) for split in ("train", "test")}
    labels = {f"{split}_labels": torch.tensor([False, True]) for split in ("train", "test")}
    with pytest.raises(
        ArgumentError, match=r"holds train_labels \(2,\) torch.bool, expected int64 \[2\], or another integer dtype"
    ):
        image_set("mine", tensors | labels)
    assert image_set("mine", tensors | {name: value.to(torch.int16) for name, value in labels.items()}).classes == ("0", "1")
