"""A finished run's model in Python."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hnetcl
from hnetcl.bn import batchnorm_layers
from hnetcl.cli.jobs import train
from hnetcl.config import Config
from hnetcl.errors import ArgumentError
from hnetcl.tasks import load_images, split_sequence
from hnetcl.training import RunDirectory

NET = """
import hnetcl
from torch import nn


@hnetcl.register_net("spectral")
def spectral(in_shape, num_classes):
    first = nn.utils.parametrizations.spectral_norm(nn.Linear(256, 16))
    return nn.Sequential(nn.Flatten(), first, nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, num_classes))
"""


@pytest.mark.parametrize("kind", ["bn=quaternion", "bn.stats=distilled", "net=custom", "hnet=direct"])
def test_the_model_of_a_run_is_what_the_run_evaluated(
    kind: str, tiny: list[str], data_root: Path, compose: Callable[..., Config], tmp_path: Path
) -> None:
    """With the run's directory alone, its data gone: the recorded accuracies, from the model and from each task's network."""
    (tmp_path / "nets.py").write_text(NET)
    imports = [str(tmp_path / "nets.py")] if kind == "net=custom" else []
    dropped = {"net=custom": ("net.",), "hnet=direct": ("hnet.",)}.get(kind, ())
    more = ["net.model=spectral", f"imports={imports}"] if imports else []
    values = [value for value in tiny if not (dropped and value.startswith(dropped))]
    run = train(compose(kind, *values, *more, f"run.dir={tmp_path / 'run'}"))
    directory = RunDirectory(run)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(str(data_root), "/nowhere"))
    model = hnetcl.load(run, imports=imports)
    assert not model.training
    recorded = directory.read_accuracy()[-1]
    sequence = split_sequence(load_images("tiny", data_root), 3, val_size=20)
    for number, task in enumerate(sequence.tasks):
        facts = directory.read_tasks()[number]
        x = (task.test.images / 255 - facts["mean"][0]) / facts["std"][0]
        plain = model.plain(number)
        assert all(layer.num_stats <= 1 for layer in batchnorm_layers(plain).values())
        for logits in (model(x, number), plain.eval()(x)):
            assert float((logits.argmax(1) == task.test.labels).double().mean()) == recorded[number]


def test_what_is_no_finished_run_is_told(tiny: list[str], compose: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"^run=.*: holds no run"):
        hnetcl.load(tmp_path)
    run = train(compose(*tiny, "trainer.steps=2", f"run.dir={tmp_path / 'run'}"))
    path = run / "model.safetensors"
    tensors = load_file(path)
    for content in (path.read_bytes()[:100], None):
        path.unlink()
        if content:
            path.write_bytes(content)
        with pytest.raises(ArgumentError, match=r"^run=.*: can't be reloaded: model.safetensors is missing or damaged"):
            hnetcl.load(run)
    assert torch.is_tensor(tensors["hnet.embedding"])
    with pytest.raises(ArgumentError, match=r"^device=tpu: not available"):
        hnetcl.load(run, device="tpu")


def test_a_network_of_the_users_own_must_be_registered(tiny: list[str], compose: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NET.replace('"spectral"', '"gone"'))
    values = [value for value in tiny if not value.startswith("net.")]
    imports = f"imports=[{tmp_path / 'nets.py'}]"
    run = train(compose("net=custom", "net.model=gone", imports, *values, "trainer.steps=2", f"run.dir={tmp_path / 'run'}"))
    from hnetcl.nets.modules import REGISTERED

    del REGISTERED["gone"]
    with pytest.raises(ArgumentError, match=r"^net.model=gone: is not registered .* the run had imports=\[.*nets.py\]"):
        hnetcl.load(run)
