"""conf/ and the schema agree, and bad input is refused in one line."""

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hnetcl import build as parts
from hnetcl import registry
from hnetcl.choices import OPTIMIZERS, SCHEDULES
from hnetcl.cli.main import CONF
from hnetcl.cli.parse import parse, parse_evaluation
from hnetcl.config import GROUPS, Config, MLPConfig
from hnetcl.errors import ArgumentError
from hnetcl.training import optimizers

FILES = sorted(path for path in CONF.glob("*/*.yaml") if path.parent.name != "experiment")
EXPERIMENTS = sorted(path.stem for path in CONF.glob("experiment/*.yaml"))


def read(path: Path) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_yaml_has_the_keys_of_its_schema(path: Path) -> None:
    values = read(path)
    values.pop("defaults", None)
    schema = GROUPS[path.parent.name]
    if isinstance(schema, dict):
        schema = schema[values["name"]]
    assert values.keys() == schema.__dataclass_fields__.keys()


def test_every_schema_has_a_yaml() -> None:
    for group, schema in GROUPS.items():
        names = {read(path).get("name") for path in CONF.glob(f"{group}/*.yaml")}
        assert not isinstance(schema, dict) or names == schema.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_option_composes(path: Path, compose: Callable[..., Config]) -> None:
    compose(f"{path.parent.name}={path.stem}", *(["net.model=mine"] if path.stem == "custom" else []))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_names_its_command(name: str, compose: Callable[..., Config]) -> None:
    compose(f"experiment={name}")
    second = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()[1]
    assert second == f"# python scripts/train.py experiment={name}"


HNETS = {name: registry.find("hnet", name) for name in registry.names("hnet")}


@pytest.mark.parametrize(
    ("group", "makers"),
    [("task", parts.SEQUENCES), ("net", parts.NETS), ("hnet", HNETS), ("method", parts.METHODS)],
)
def test_keys_are_arguments(group: str, makers: dict[str, Callable[..., object]]) -> None:
    """Every key of a part's YAML is an argument of its constructor."""
    schemas = GROUPS[group]
    assert isinstance(schemas, dict)
    assert schemas.keys() == makers.keys()
    for name, schema in schemas.items():
        keys = schema.__dataclass_fields__.keys() - {"name", "dataset"}
        assert keys <= signature(makers[name]).parameters.keys()


def test_choices_are_what_the_parts_know() -> None:
    assert set(SCHEDULES) == optimizers.SCHEDULES.keys()
    schemas = GROUPS["optimizer"]
    assert isinstance(schemas, dict)
    assert set(OPTIMIZERS) == optimizers.OPTIMIZERS.keys() == schemas.keys()
    for name, schema in schemas.items():
        keys = schema.__dataclass_fields__.keys() - {"name", "schedule"}
        assert keys <= signature(optimizers.OPTIMIZERS[name]).parameters.keys()


@pytest.mark.parametrize("algebra", ["real", "complex", "quaternion"])
def test_the_network_follows_the_algebra_of_bn(algebra: str, compose: Callable[..., Config]) -> None:
    for override, expected in ((f"bn.algebra={algebra}", algebra), ("net.algebra=real", "real")):
        net = compose(f"bn={algebra}", override).net
        assert isinstance(net, MLPConfig)
        assert net.algebra == expected


@pytest.mark.parametrize("net", ["torchvision", "custom"])
def test_networks_of_others_are_real(net: str, compose: Callable[..., Config]) -> None:
    assert compose(f"net={net}", "net.model=mine").bn.algebra == "real"
    assert compose(f"net={net}", "net.model=mine", "bn=complex").bn.algebra == "complex"


@pytest.mark.parametrize("method", ["finetune", "joint"])
def test_baselines_hold_their_weights_directly(method: str, compose: Callable[..., Config]) -> None:
    assert compose(f"method={method}").hnet.name == "direct"
    assert compose(f"method={method}", "hnet=chunked").hnet.name == "chunked"


REFUSED = {
    "optimizer.lr=-1": "optimizer.lr=-1.0: must be greater than 0",
    "optimizer.lr=nan": "optimizer.lr=nan: must be a finite number, greater than 0",
    "optimizer.lr=abc": "optimizer.lr=abc: must be of type float",
    "+foo=1": "foo=1: there is no such key; allowed: bn, data, device",
    "+net.hiden=[4]": "net.hiden=[4]: there is no such key; did you mean hidden?",
    "net.hidden=[10,10]": "net.hidden=[10, 10]: every width must be a multiple of 4 (quaternion)",
    "net.hidden=[]": "net.hidden=[]: must be a list of widths of at least 1",
    "net.hidden=4": "net.hidden=4: must be of type list[int]",
    "net.name=mpl": "net.name=mpl: did you mean mlp? allowed: custom, lenet, mlp, torchvision",
    "trainer.batch_size=0": "trainer.batch_size=0: must be at least 2",
    "trainer.epochs=2 trainer.steps=1000": "trainer.steps=1000: give steps or epochs, not both or none (epochs=2)",
    "trainer.steps=null": "trainer.steps=None: give steps or epochs, not both or none (epochs=None)",
    "trainer.steps=1.5": "trainer.steps=1.5: must be of type int | None",
    "hnet.chunk_size=0": "hnet.chunk_size=0: must be at least 1",
    "hnet.compression=0": "hnet.compression=0.0: must be greater than 0",
    "bn.algebra=octonion": "bn.algebra=octonion: allowed: complex, quaternion, real",
    "bn.momentum=2": "bn.momentum=2.0: must be at least 0 and at most 1",
    "bn.stats=traked": "bn.stats=traked: did you mean tracked?",
    "net=custom": "net.model=None: is missing",
    "net.norm=layer": "net.norm=layer: allowed: batch, none",
    "generate=[]": "generate=[]: must be all, norm, or a list of patterns",
    "generate=[3]": "generate=[3]: must be all, norm, or a list of patterns",
    "shared=frozen": "shared=frozen: allowed: fixed, trained, trained_once",
    "observers=[progress,tensorbord]": "observers=['progress', 'tensorbord']: tensorbord: did you mean tensorboard?",
    "observers=[3]": "observers=['3']: 3: allowed: figures, progress, tensorboard",
    "observers=figures": "observers=figures: must be of type list[str]",
    "imports=mine": "imports=mine: must be of type list[str]",
    "scenario=all": "scenario=all: allowed: class, domain, task",
    "inference=luck": "inference=luck: allowed: agreement, confidence, entropy",
    "optimizer=rmsprop optimizer.alpha=2": "optimizer.alpha=2.0: must be at least 0 and at most 1",
    "optimizer=adagrad optimizer.initial_accumulator_value=-1": "optimizer.initial_accumulator_value=-1.0: must be at least 0",
    "optimizer=adagrad +optimizer.momentum=0.9": "optimizer.momentum=0.9: there is no such key",
    "method.beta=-1": "method.beta=-1.0: must be at least 0",
    "method.importance=fischer": "method.importance=fischer: did you mean fisher? allowed: fisher, none",
    "method.targets_dtype=half": "method.targets_dtype=half: allowed: bfloat16, float16, float32, float64",
    "method.targets_device=disk": "method.targets_device=disk: allowed: cpu",
    "method.tasks_at_once=0": "method.tasks_at_once=0: must be at least 1",
    "method.targets=online method.targets_device=cpu": "method.targets_device=cpu: targets=online stores no targets",
    "seed=-1": "seed=-1: must be at least 0",
    "~bn": "bn=null: allowed: complex, quaternion, real",
}


@pytest.mark.parametrize(("override", "message"), REFUSED.items())
def test_refused_in_one_line(override: str, message: str, compose: Callable[..., Config]) -> None:
    with pytest.raises(ArgumentError) as caught:
        compose(*(["net.algebra=quaternion"] if override == "~bn" else []), *override.split())
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_agreement_needs_embeddings(compose: Callable[..., Config]) -> None:
    with pytest.raises(ArgumentError, match="inference=agreement: hnet=direct has no task embeddings"):
        compose("method=finetune", "scenario=class", "inference=agreement")


def test_a_saved_configuration_can_call_nothing() -> None:
    with pytest.raises(ArgumentError, match="no such key"):
        parse({"_target_": "os.system"})


def test_evaluation_arguments() -> None:
    own = {"scenario": None, "inference": None}
    values: dict[str, Any] = {
        "run": "DIR",
        "task": None,
        "stats": 0,
        **own,
        "imports": [],
        "device": "cpu",
        "data": {"root": None},
    }
    assert parse_evaluation(values).stats == "0"
    with pytest.raises(ArgumentError, match="task=-1: must be at least 0"):
        parse_evaluation({**values, "task": -1})
