"""conf/ and the parts agree, and bad input is refused in one line, before anything is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from choices import allowed
from omegaconf import OmegaConf

from hnetcl.build import build
from hnetcl.cli.jobs import train
from hnetcl.cli.main import CONF
from hnetcl.config import CHOSEN, Config, group_options, parse, parse_evaluation
from hnetcl.errors import ArgumentError
from hnetcl.registry import names
from hnetcl.training.schedules import SCHEDULES

FILES = sorted(path for path in CONF.glob("*/*.yaml") if path.parent.name != "experiment")
EXPERIMENTS = sorted(path.stem for path in CONF.glob("experiment/*.yaml"))


def read(path: Path) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    values = values.get(path.parent.name, values)  # a file of the global package sets keys of other groups too
    return {str(key): value for key, value in values.items()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_yaml_composes_and_its_keys_are_options_of_its_part(path: Path, compose: Callable[..., Config]) -> None:
    values, group = read(path), path.parent.name
    values.pop("defaults", None)
    name = values.get("name", "layer" if group == "bn" else None)
    assert values.keys() <= group_options(group, name).keys()
    compose(f"{group}={path.stem}")


def test_every_part_of_a_group_has_a_yaml() -> None:
    groups = {path.parent.name for path in FILES}
    assert groups == {*CHOSEN, "trainer"}
    for group in set(CHOSEN) - {"bn"}:  # where the YAMLs are the algebras of one layer
        assert {read(path)["name"] for path in CONF.glob(f"{group}/*.yaml")} == set(names(group))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_names_its_command(name: str, compose: Callable[..., Config]) -> None:
    compose(f"experiment={name}")
    second = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()[1]
    assert second == f"# python scripts/train.py experiment={name}"


def test_schedules_are_what_optimizers_know() -> None:
    for name in names("optimizer"):
        assert set(allowed("optimizer", name, "schedule")) == {*SCHEDULES, "step"}


@pytest.mark.parametrize("algebra", ["real", "complex", "quaternion"])
def test_the_network_follows_the_algebra_of_bn(algebra: str, compose: Callable[..., Config]) -> None:
    for override, expected in ((f"bn.algebra={algebra}", algebra), ("net.algebra=real", "real")):
        assert compose(f"bn={algebra}", override).net["algebra"] == expected


def test_networks_of_others_are_real(compose: Callable[..., Config]) -> None:
    assert compose("net=torchvision").bn["algebra"] == "real"
    assert compose("net=torchvision", "bn=complex").bn["algebra"] == "complex"


@pytest.mark.parametrize("method", ["finetune", "joint"])
def test_baselines_hold_their_weights_directly(method: str, compose: Callable[..., Config]) -> None:
    assert compose(f"method={method}").hnet["name"] == "direct"
    assert compose(f"method={method}", "hnet=chunked").hnet["name"] == "chunked"


REFUSED = {
    "optimizer.lr=-1": "optimizer.lr=-1: must be greater than 0",
    "optimizer.lr=nan": "optimizer.lr=nan: must be a finite number, greater than 0",
    "optimizer.lr=abc": "optimizer.lr=abc: must be of type float",
    "+foo=1": "foo=1: there is no such key; allowed: active_classes, bn, data, device",
    "+net.hiden=[4]": "net.hiden=[4]: there is no such key; did you mean net.hidden?",
    "net.hidden=[]": "net.hidden=[]: must not be empty",
    "net.hidden=[4,0]": "net.hidden=[4, 0]: every value must be at least 1",
    "net.hidden=4": "net.hidden=4: must be of type list[int]",
    "net.name=mpl": "net.name=mpl: did you mean mlp? allowed: lenet, mlp, resnet, resnet18, torchvision, wide_resnet, zenke",
    "trainer.batch_size=0": "trainer.batch_size=0: must be at least 2",
    "trainer.steps=1.5": "trainer.steps=1.5: must be of type int | None",
    "hnet.chunk_size=0": "hnet.chunk_size=0: must be at least 1",
    "hnet.compression=0": "hnet.compression=0: must be greater than 0",
    "bn.algebra=octonion": "bn.algebra=octonion: allowed: complex, quaternion, real",
    "bn.momentum=2": "bn.momentum=2: must be at least 0 and at most 1",
    "bn.eps=0": "bn.eps=0: must be greater than 0",
    "bn.stats=traked": "bn.stats=traked: did you mean tracked?",
    "net.norm=layer": "net.norm=layer: allowed: batch, none",
    "generate=[]": "generate=[]: must be all, norm, or a list of patterns",
    "generate=null": "generate=None: must be all, norm, or a list of patterns",
    "generate=[3]": "generate=[3]: must be all, norm, or a list of patterns",
    "shared=frozen": "shared=frozen: allowed: fixed, trained, trained_once",
    "observers=[progress,tensorbord]": "observers=['progress', 'tensorbord']: tensorbord: did you mean tensorboard?",
    "observers=[3]": "observers=[3]: must be of type list[str]",
    "observers=figures": "observers=figures: must be of type list[str]",
    "imports=mine": "imports=mine: must be of type list[str]",
    "scenario=all": "scenario=all: allowed: class, domain, task",
    "inference.name=luck": "inference.name=luck: allowed: agreement, confidence, entropy",
    "inference=statistics inference.rank=0": "inference.rank=0: must be at least 1",
    "inference=statistics inference.ridge=1e-9": "inference.ridge=1e-09: must be at least 1e-06 and at most 1e+06",
    "inference=statistics inference.layers=[]": "inference.layers=[]: must not be empty",
    "inference.rank=3": "inference.rank=3: there is no such key; allowed: inference.name (inference=entropy)",
    "optimized_metric=accuracy": "optimized_metric=accuracy: did you mean average_accuracy? allowed: average_accuracy",
    "optimized_metric=task_aware": "optimized_metric=task_aware: in scenario=task the task is told",
    "optimizer=rmsprop optimizer.alpha=2": "optimizer.alpha=2: must be at least 0 and at most 1",
    "optimizer=adagrad optimizer.initial_accumulator_value=-1": "optimizer.initial_accumulator_value=-1: must be at least 0",
    "optimizer=adagrad +optimizer.momentum=0.9": "optimizer.momentum=0.9: there is no such key",
    "method.beta=-1": "method.beta=-1: must be at least 0",
    "method.importance=fischer": "method.importance=fischer: did you mean fisher? allowed: fisher, none",
    "method.targets_dtype=half": "method.targets_dtype=half: allowed: bfloat16, float16, float32, float64",
    "method.targets_device=disk": "method.targets_device=disk: allowed: cpu",
    "method.tasks_at_once=0": "method.tasks_at_once=0: must be at least 1",
    "method.task_weights=[1,1,1,-1]": "method.task_weights=[1, 1, 1, -1]: every value must be at least 0",
    "method.task_weights=[inf,1,1,1]": "method.task_weights=[inf, 1, 1, 1]: every value must be a finite number, at least 0",
    "trainer.threads=100000": "trainer.threads=100000: must be at least 1 and at most",
    "seed=-1": "seed=-1: must be at least 0 and at most 2147483647",
    "~bn": "bn=null: allowed: complex, fused, quaternion, real, virtual",
}


@pytest.mark.parametrize(("override", "message"), REFUSED.items())
def test_refused_in_one_line(override: str, message: str, compose: Callable[..., Config]) -> None:
    with pytest.raises(ArgumentError) as caught:
        compose(*(["net.algebra=quaternion"] if override == "~bn" else []), *override.split())
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


REFUSED_WHEN_BUILT = {
    "net.hidden=[10,10]": "net.hidden=[10, 10]: every width must be a multiple of 4 (quaternion)",
    "net.algebra=real net.hidden=[8,10]": "net.hidden=[8, 10]: every width must be a multiple of 4 (quaternion)",
    "net=lenet net.channels=[8,10]": "net.channels=[8, 10]: every width must be a multiple of 4 (quaternion)",
    "trainer.epochs=2 trainer.steps=1000": "trainer.steps=1000: give steps or epochs, not both or none (epochs=2)",
    "trainer.steps=null": "trainer.steps=None: give steps or epochs, not both or none (epochs=None)",
    "trainer.evaluate=last optimized_metric=fwt": "optimized_metric=fwt: takes more than trainer.evaluate=last measures; "
    "allowed with it: average_accuracy, bwt",
    "bn.sync=true bn.backend=reference": "bn.backend=reference: can't be given with sync=true",
    "hnet.chunk_size=9 hnet.compression=0.9": "hnet.chunk_size=9: can't be given with compression=0.9",
    "optimizer=sgd optimizer.nesterov=true optimizer.momentum=0": "optimizer.nesterov=True: needs a momentum above 0",
    "method.targets=online method.targets_device=cpu": "method.targets_device=cpu: targets=online stores no targets",
    "method.targets=online method.targets_dtype=float16": "method.targets_dtype=float16: targets=online stores no targets",
    "method.task_weights=[1]": "method.task_weights=[1.0]: must be 3 weights, one for each task (task.num_tasks=3)",
    "method.task_weights=[1,1,1,1]": "method.task_weights=[1.0, 1.0, 1.0, 1.0]: must be 3 weights",
    "task=permuted_mnist task.padding=0 method.task_weights=[0]": "method.task_weights=[0.0]: must be 3 weights",
    "bn.stats=batch method.importance=fisher": "method.importance=fisher: needs batch norm whose statistics don't depend on",
    "scenario=class head=task bn.rows=task inference=agreement hnet=direct": "inference=agreement: DirectHyperNetwork has no "
    "task embeddings to put noise on; allowed: confidence, entropy",
    "scenario=class inference=statistics hnet=direct": "inference=statistics: goes unused, for the network is the same for all",
    "scenario=class inference=statistics task.val_size=1": "inference=statistics: needs held-out images of every task, and",
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED_WHEN_BUILT.items())
def test_refused_when_built_in_one_line(
    overrides: str,
    message: str,
    tiny: list[str],
    tmp_path: Path,
    compose: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What depends on several values; nothing has been written then."""
    words = overrides.split()
    own = tuple(f"{group}." for group in CHOSEN if any(word.startswith(f"{group}=") for word in words) and group != "task")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError) as caught:
        train(compose(*(word for word in tiny if not word.startswith(own)), *words))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "overrides",
    ["method.task_weights=[1,0]", "method.task_weights=[1,1,2]", "net.norm=none bn.stats=batch method.importance=fisher"],
)
def test_what_goes_well_is_not_refused(overrides: str, tiny: list[str], compose: Callable[..., Config]) -> None:
    build(compose(*tiny, *overrides.split()), torch.device("cpu"))
    compose("scenario=class", "optimized_metric=task_aware")


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
