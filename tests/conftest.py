"""A small image set that is quick to learn, and configurations as the command line composes them."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each of pytest's workers has a core of its own

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import save_file

from hnetcl import registry
from hnetcl.cli.main import CONF, add_parts, option_names
from hnetcl.cli.plain import typed_config, typed_evaluation
from hnetcl.cli.words import prepared
from hnetcl.config import Config, EvaluationConfig

CLASSES = 6
SIDE = 16


def pictures(per_class: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One bright 6 x 6 square per picture, at a place that tells the class, on noise."""
    labels = torch.arange(CLASSES).repeat(per_class)
    images = torch.randint(0, 80, (len(labels), 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 9 * (label // 3), 5 * (label % 3)
        image[0, row : row + 6, column : column + 6] += 150
    return images, labels


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny.safetensors`: 6 classes, 16 x 16 grey images."""
    generator = torch.Generator().manual_seed(0)
    root = tmp_path_factory.mktemp("data")
    tensors = {}
    for split, per_class in (("train", 60), ("test", 20)):
        tensors[f"{split}_images"], tensors[f"{split}_labels"] = pictures(per_class, generator)
    save_file(tensors, root / "tiny.safetensors")
    return root


@pytest.fixture
def tiny(small_job: list[str]) -> list[str]:
    """Overrides that make the main job small."""
    return list(small_job)


@pytest.fixture(scope="session")
def small_job(data_root: Path) -> list[str]:
    """The same, for what is shared by many tests; nobody changes it."""
    return [
        f"data.root={data_root}",
        "task.dataset=tiny",
        "task.num_tasks=3",
        "task.val_size=20",
        "net.hidden=[16,16]",
        "hnet.hidden=[16]",
        "hnet.embedding_dim=8",
        "hnet.chunk_embedding_dim=8",
        "trainer.steps=30",
        "trainer.batch_size=16",
        "trainer.eval_batch_size=64",
        "trainer.log_every=10",
        "optimizer.lr=0.01",
    ]


@pytest.fixture
def users_parts() -> Iterator[None]:
    """Parts that a test registers, and modules that it imports, are gone afterwards."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    for kind in registry.KINDS:
        for name in set(registry.names(kind)) - registry._declared(kind).keys():
            del registry._registered[kind][name]
    for name in set(sys.modules) - modules:
        if name.startswith(("imported from", "my_")):
            del sys.modules[name]
    sys.path[:] = path


@pytest.fixture
def compose() -> Callable[..., Config]:
    """Overrides -> Config, as the command line does it."""

    def call(*overrides: str) -> Config:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            add_parts(overrides, option_names("config"))
            return typed_config(hydra.compose("config", prepared(overrides, option_names("config"))), overrides)

    return call


@pytest.fixture
def compose_evaluation() -> Callable[..., EvaluationConfig]:
    """The same for the arguments of an evaluation."""

    def call(*overrides: str) -> EvaluationConfig:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return typed_evaluation(hydra.compose("evaluate", list(overrides)))

    return call
