"""Networks from outside, from the command line: torchvision's and a user's own, whole or in part."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn

from hnetcl import register, registry
from hnetcl.bn import batchnorm_layers
from hnetcl.build import Parts, build
from hnetcl.cli.imports import import_all
from hnetcl.cli.jobs import evaluate, train
from hnetcl.cli.main import CONF
from hnetcl.config import Config, EvaluationConfig
from hnetcl.errors import ArgumentError
from hnetcl.training import RunDirectory

pytestmark = pytest.mark.usefixtures("users_parts")
CPU = torch.device("cpu")
SMALL = ["hnet.hidden=[8]", "hnet.embedding_dim=8", "hnet.chunk_embedding_dim=8", "hnet.chunk_size=20000"]
TASKS = ["task.num_tasks=2", "task.classes_per_task=2", "trainer.batch_size=16", "trainer.log_every=10"]
Compose = Callable[..., Config]
Evaluation = Callable[..., EvaluationConfig]


@pytest.fixture
def my_nets(tmp_path: Path) -> Path:
    """The README's module of a user's own."""
    readme = (CONF.parent / "README.md").read_text()
    code = next(c for c in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if 'register("net"' in c)
    assert len(code.splitlines()) < 15
    path = tmp_path / "my_nets.py"
    path.write_text(code)
    return path


@pytest.fixture(params=["colour", "cifar100"])
def images(request: pytest.FixtureRequest, data_root: Path, tmp_path: Path) -> list[str]:
    """Overrides that name an image set of three channels: a small made-up one, and CIFAR-100 where it lies at hand."""
    root = Path(os.environ.get("HNETCL_DATA", tmp_path))
    if request.param == "colour":
        root = tmp_path
        tensors = load_file(data_root / "tiny.safetensors")
        colour = {name: value.repeat(1, 3, 1, 1) if value.ndim == 4 else value for name, value in tensors.items()}
        save_file(colour, root / "colour.safetensors")
    elif not (root / "cifar100.safetensors").exists():
        pytest.skip("cifar100.safetensors is not in the folder that HNETCL_DATA names")
    return [*TASKS, f"data.root={root}", f"task.dataset={request.param}", "task.val_size=20"]


def script(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = CONF.parent / "scripts" / f"{name}.py"
    return subprocess.run([sys.executable, str(path), *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def recorded(run: Path) -> list[float]:
    return [float(value) for value in (run / "accuracy.csv").read_text().splitlines()[-1].split(",")[1:]]


def parts(config: Config) -> Parts:
    torch.manual_seed(0)
    return build(config, CPU)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "layers"), [("resnet18", 20), ("tower", 2)])
def test_a_network_from_outside_trains_on_two_tasks_and_reloads(
    kind: str,
    layers: int,
    images: list[str],
    my_nets: Path,
    tmp_path: Path,
    compose: Compose,
) -> None:
    """Each of its batch-norm layers keeps a row per task; a fresh process prints the same numbers to the last digit."""
    own = [f"imports=[{my_nets}]"] if kind == "tower" else []
    net = [*own, "net=tower"] if own else ["net=torchvision", f"net.model={kind}"]
    run = train(compose(*net, *images, *SMALL, "trainer.steps=4", f"run.dir={tmp_path / 'run'}"))
    rows = {name: value for name, value in load_file(run / "model.safetensors").items() if name.endswith("running_mean")}
    assert len(rows) == layers
    assert all(len(value) == 2 and not torch.equal(value[0], value[1]) for value in rows.values())
    process = script("evaluate", f"run={run}", *own, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert all(process.stdout.count(f"{value:.6f}") >= 2 for value in recorded(run))
    assert "these are not the recorded numbers" not in process.stdout


@pytest.mark.slow
def test_the_readmes_commands(my_nets: Path, tiny: list[str], tmp_path: Path) -> None:
    """Keys need no plus sign and no YAML; a module is found in the current directory; the values reach the network."""
    net = ["imports=[my_nets]", "net=tower", "net.width=12", "hnet.chunk_size=1000"]
    values = [value for value in tiny if not value.startswith("net.")]
    process = script("train", *net, *values, "trainer.steps=2", f"run.dir={tmp_path / 'run'}", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert len(load_file(tmp_path / "run" / "model.safetensors")["net.1.running_mean"][0]) == 12
    process = script("evaluate", f"run={tmp_path / 'run'}", cwd=tmp_path)
    assert process.returncode == 2
    assert re.fullmatch(r"net\.name=tower: allowed: lenet, mlp, .*; the run had imports=\[my_nets\]\n", process.stderr)


def test_a_saved_run_imports_nothing(
    my_nets: Path, tiny: list[str], tmp_path: Path, compose: Compose, compose_evaluation: Evaluation
) -> None:
    """Neither evaluation nor resumption follows what config.yaml names; another name of the same module serves as well."""
    values = [value for value in tiny if not value.startswith("net.")]
    net = ["net=tower", "net.width=8", "hnet.chunk_size=1000", "trainer.steps=2"]
    run = train(compose(f"imports=[{my_nets}]", *net, *values, f"run.dir={tmp_path / 'run'}"))
    trap = tmp_path / "trap.py"
    trap.write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'sprung')!r}).touch()\n{my_nets.read_text()}")
    saved = OmegaConf.merge(OmegaConf.load(run / "config.yaml"), {"imports": [str(trap)]})
    OmegaConf.save(saved, run / "config.yaml")
    RunDirectory(run).save_model(load_file(run / "model.safetensors"))  # as if the run had written it
    assert evaluate(compose_evaluation(f"run={run}", f"imports=[{my_nets}]")) == recorded(run)
    train(compose(f"imports=[{my_nets}]", *net, *values, f"run.dir={run}", "resume=true"))
    del registry._registered["net"]["tower"]
    with pytest.raises(ArgumentError, match=r"^net\.name=tower: allowed: lenet, mlp, .*; the run had imports=\[.*"):
        evaluate(compose_evaluation(f"run={run}"))
    with pytest.raises(ArgumentError, match=r"^net\.name=tower: allowed: lenet, mlp, "):
        train(compose(*net, *values, f"run.dir={run}", "resume=true"))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (None, "FileNotFoundError"),
        ("def broken(:", "SyntaxError: invalid syntax"),
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("\nraise RuntimeError('a\\nb')", r"RuntimeError: a b \(.*bad.py, line 2\)"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("import hnetcl\n\nhnetcl.register('net', 'mlp')(print)", r"choose another name \(.*bad.py, line 3\)"),
    ],
)
def test_modules_that_cant_be_imported(code: str | None, line: str, tmp_path: Path, compose: Compose) -> None:
    path = tmp_path / "bad.py"
    if code is not None:
        path.write_text(code)
    for _ in range(2):  # a module that failed is not taken for imported
        with pytest.raises(ArgumentError, match=rf"^imports=\['.*bad.py'\]: .*bad.py: .*{line}") as caught:
            train(compose(f"imports=[{path}]"))
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("users_parts")
def test_a_neighbour_is_not_taken_for_another_folders(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my_helper.py").write_text(f"where = '{folder}'")
        (tmp_path / folder / "part.py").write_text("import my_helper")
    import_all([str(tmp_path / "a" / "part.py")])
    with pytest.raises(ArgumentError, match=r"its neighbour my_helper.py is hidden by .*a/my_helper.py, which is imported"):
        import_all([str(tmp_path / "b" / "part.py")])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["net=mlp", "net.name=towr"], r"net.name=towr: did you mean tower\? allowed: asking, lenet, list, mlp, mute, "),
        (["net=tower", "net.widht=3"], r"net.widht=3: .*did you mean net.width\? allowed: net.name, net.width \(net=tower\)"),
        (["net=tower", "net.width=wide"], "net.width=wide: must be of type int"),
        (["net=asking"], r"net=asking: .*'depth'; a net is given in_shape, num_outputs, norm, and arguments behind \* are its"),
        (["net=list"], "net=list: must make a torch.nn.Module, not list"),
        (["net=mute"], "net=mute: can't take images of shape .*forward"),
        (["net=wide"], r"net=wide: .* of shape \(2, 2\), not \(2, 7\)"),
        (["net=tower", "bn=quaternion", "net.width=6"], "bn.algebra=quaternion: tower has a batch-norm layer of 6 channels"),
        (["net=torchvision", "net.model=resnet81"], "net.model=resnet81: did you mean resnet18"),
        (["net=torchvision"], r"net.model=resnet18: can't take images of shape \(1, 16, 16\) .*3 channels"),
        (["net=torchvision", "net.options.weights=DEFAULT"], "net.options={'weights': 'DEFAULT'}: .* refuses them"),
        (["generate=[hed.*]"], r"generate=\['hed.\*'\]: 'hed.\*' matches none of body.1.weight"),
        (["generate=norm", "net.norm=none"], "generate=norm: MLP has no norm layer"),
        (
            ["generate=norm", "hnet=direct"],
            "hnet.per_task=None: no linear or convolution layer of 2 outputs is generated",
        ),
    ],
)
def test_refused(overrides: list[str], message: str, tiny: list[str], compose: Compose) -> None:
    @register("net", "tower")
    def tower(in_shape: tuple[int, ...], num_outputs: int, *, width: int = 8) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.BatchNorm1d(width), nn.Linear(width, num_outputs))

    register("net", "asking")(lambda in_shape, depth: nn.Module())
    register("net", "list")(lambda in_shape, num_outputs: [])
    register("net", "mute")(lambda in_shape, num_outputs: nn.Module())
    register("net", "wide")(lambda in_shape, num_outputs: nn.Sequential(nn.Flatten(), nn.LazyLinear(7)))
    dropped = ("net.",) if overrides[0].startswith("net=") else ("hnet.",) if "hnet=direct" in overrides else ()
    with pytest.raises(ArgumentError, match=f"^{message}") as caught:
        parts(compose(*[value for value in tiny if not value.startswith(dropped)], *overrides))
    assert "\n" not in str(caught.value)


def test_a_network_may_ask_for_norm_layers(tiny: list[str], compose: Compose) -> None:
    """It is given what makes one of a width, as `bn` says, or None where `net.norm=none`, which only these have."""
    given: list[Callable[[int], nn.Module] | None] = []

    @register("net", "asks")
    class Asks(nn.Sequential):
        def __init__(
            self, norm: Callable[[int], nn.Module] | None, num_outputs: int, *, widths: Sequence[int] = (8,), power: Any = 1
        ) -> None:
            given.append(norm)
            hidden = [layer for width in widths for layer in (nn.LazyLinear(width), *([norm(width)] if norm else []))]
            super().__init__(nn.Flatten(), *hidden, nn.LazyLinear(num_outputs))

    values = [value for value in tiny if not value.startswith("net.")]
    for norm, kinds in (("batch", [("complex", 3), ("complex", 3)]), ("none", [])):
        config = compose(*values, "net=asks", "net.widths=[8,4]", "bn=complex", f"net.norm={norm}")
        assert config.net == {"name": "asks", "widths": [8, 4], "power": 1, "norm": norm}
        layers = batchnorm_layers(parts(config).model.net).values()
        assert [(layer.algebra.name, layer.num_stats) for layer in layers] == kinds
    assert [norm is None for norm in given] == [False, True]


def test_batch_norm_of_others_follows_the_group(tiny: list[str], compose: Compose) -> None:
    """What `bn` says holds for their layers, too; without Gamma and beta they stay unless `bn` speaks of them."""

    @register("net", "pair")
    def pair(in_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
        norms = nn.BatchNorm1d(8, eps=1e-3, momentum=0.5), nn.BatchNorm1d(8, affine=False)
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), *norms, nn.Linear(8, num_outputs))

    values = [value for value in tiny if not value.startswith("net.")]
    bn = ["bn=complex", "bn.stats=learnable", "bn.momentum=0.2", "bn.eps=1e-4", "bn.whitening=cholesky"]
    for affine in (True, False):
        model = parts(compose(*values, "net=pair", *bn, f"bn.affine={affine}")).model
        layers = batchnorm_layers(model.net)
        for layer in layers.values():
            assert (layer.algebra.name, layer.stats, layer.momentum) == ("complex", "learnable", 0.2)
            assert (layer.eps, layer.whitening, layer.num_stats) == (1e-4, "cholesky", 3)
        assert [layer.affine for layer in layers.values()] == [affine, False]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("generate", "written"),
    [("norm", {"body.2", "body.5"}), ("[head.*,body.5.weight]", {"head", "body.5"}), ("head.*", {"head"})],
)
@pytest.mark.parametrize("hnet", ["chunked", "full", "direct"])
def test_parts_of_our_networks_are_written(
    generate: str,
    written: set[str],
    hnet: str,
    tiny: list[str],
    tmp_path: Path,
    compose: Compose,
    compose_evaluation: Evaluation,
) -> None:
    """The others are saved with the run, start from the network's own values, and stay there where they are fixed."""
    values = [value for value in tiny if not value.startswith("hnet.")]
    values += (
        ["hnet=direct", "hnet.per_task=['*']"]
        if hnet == "direct"
        else [f"hnet={hnet}", "hnet.hidden=[4]", *(["hnet.chunk_size=16"] if hnet == "chunked" else [])]
    )
    config = compose(*values, f"generate={generate}", "shared=fixed", "trainer.steps=5", f"run.dir={tmp_path / 'run'}")
    before = parts(config).model
    assert {name.rpartition(".")[0] for name in before.hnet.shapes} == written
    run = train(config)
    after = load_file(run / "model.safetensors")
    for name, value in before.net.named_parameters():
        assert (f"net.{name}" in after) != (name in before.hnet.shapes)
        assert name in before.hnet.shapes or torch.equal(after[f"net.{name}"], value)
    assert evaluate(compose_evaluation(f"run={run}")) == recorded(run)


@pytest.mark.parametrize("shared", ["trained", "trained_once"])
def test_shared_parameters_learn_as_long_as_they_are_told(
    shared: str, tiny: list[str], tmp_path: Path, compose: Compose
) -> None:
    """A second task moves them, or leaves them as the first one did."""
    values = [value for value in tiny if not value.startswith("hnet.")]
    values += ["hnet=direct", "hnet.per_task=[body.2.*]", "generate=norm", f"shared={shared}", "trainer.steps=5"]
    run = train(compose(*values, "task.num_tasks=2", f"run.dir={tmp_path / 'run'}"))
    states = [RunDirectory(run).load_checkpoint()]
    (run / "checkpoints" / "last.safetensors").unlink()
    states.append(RunDirectory(run).load_checkpoint())
    assert [state and state["standing"]["done"] for state in states] == [2, 1]
    after = [state["model"]["net.head.weight"] for state in states if state]
    assert torch.equal(*after) == (shared == "trained_once")


@pytest.mark.parametrize("net", ["mlp", "lenet"])
def test_without_batch_norm(
    net: str, tiny: list[str], tmp_path: Path, compose: Compose, compose_evaluation: Evaluation
) -> None:
    """Layers have biases then, and neither rows nor statistics are left."""
    extra = ["net.channels=[4,8]", "net.hidden=[16]"] if net == "lenet" else []
    run = train(
        compose(f"net={net}", *tiny, *extra, "net.norm=none", "hnet.chunk_size=100", "trainer.steps=40", f"run.dir={tmp_path}")
    )
    assert not [name for name in load_file(run / "model.safetensors") if name.startswith("net.")]
    model = parts(compose(f"net={net}", *tiny, *extra, "net.norm=none", "hnet.chunk_size=100")).model
    assert not batchnorm_layers(model.net)
    assert all(f"{name.rpartition('.')[0]}.bias" in model.hnet.shapes for name in model.hnet.shapes)
    assert evaluate(compose_evaluation(f"run={run}")) == recorded(run)
    assert sum(recorded(run)) / 3 > 0.8
    with pytest.raises(ArgumentError, match="uses no statistics; allowed: own"):
        evaluate(compose_evaluation(f"run={run}", "stats=0"))


OTHERS = """
import hnetcl
import torch
from hnetcl.vision import import_torchvision
from torch import nn


@hnetcl.register("net", "small")
def small(in_shape, num_outputs):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(num_outputs))


@hnetcl.register("net", "vit")
def vit(in_shape, num_outputs):
    return import_torchvision().models.VisionTransformer(16, 8, 1, 2, 16, 16, num_classes=num_outputs)


@hnetcl.register("net", "pretrained")
def pretrained(in_shape, num_outputs):
    convolution = nn.Conv2d(in_shape[0], 8, 3)
    net = nn.Sequential(convolution, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_outputs))
    net(torch.randn(4, *in_shape))
    return net
"""


@pytest.fixture
def others(tmp_path: Path) -> Path:
    path = tmp_path / "others.py"
    path.write_text(OTHERS)
    return path


@pytest.fixture
def colour(data_root: Path, tmp_path: Path) -> list[str]:
    tensors = load_file(data_root / "tiny.safetensors")
    save_file({n: v.repeat(1, 3, 1, 1) if v.ndim == 4 else v for n, v in tensors.items()}, tmp_path / "colour.safetensors")
    return [*TASKS, f"data.root={tmp_path}", "task.dataset=colour", "task.val_size=20", "trainer.steps=2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "methods", "heads"),
    [
        ("", ["finetune", "joint"], {"small": 4 * 2 + 2, "vit": 16 * 2 + 2}),
        ("torchvision", ["finetune"], {"resnet18": 512 * 2 + 2}),
    ],
)
def test_baselines_train_networks_of_others(
    net: str, methods: list[str], heads: dict[str, int], others: Path, colour: list[str], tmp_path: Path
) -> None:
    """With no word about heads: each task has the layer that makes the logits for itself, all else is shared."""
    names = [f"net={net}", f"net.model={','.join(heads)}"] if net else [f"net={','.join(heads)}"]
    choices = [f"imports=[{others}]", *names, f"method={','.join(methods)}"]
    process = script("train", "-m", *choices, *colour, f"hydra.sweep.dir={tmp_path / 'sweep'}", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    for job in range(len(heads) * len(methods)):
        run = tmp_path / "sweep" / str(job)
        config = OmegaConf.load(run / "config.yaml")
        assert (run / "metrics.json").exists()
        assert config.hnet.per_task is None
        assert load_file(run / "model.safetensors")["hnet.own"].shape == (2, heads[config.net.get("model", config.net.name)])


@pytest.mark.slow
def test_a_small_network_at_the_defaults(others: Path, colour: list[str], tmp_path: Path) -> None:
    """The screen says what became of the wanted ratio; one that was typed is refused."""
    values = [f"imports=[{others}]", "net=small", *colour, f"run.dir={tmp_path / 'run'}"]
    process = script("train", *values, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "no chunk size comes to compression 0.95: taken is the smallest in reach" in process.stdout
    process = script("train", *values, "hnet.compression=0.95", "run.dir=other", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.startswith("hnet.compression=0.95: the smallest ratio that a chunk size reaches is ")
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("bn", [[], ["bn=quaternion"]])
def test_a_pretrained_network(bn: list[str], others: Path, colour: list[str], tmp_path: Path, compose: Compose) -> None:
    """Its owner says whether its weights are kept; the baselines, which hold weights as they are, need not be told."""
    values = [f"imports=[{others}]", "net=pretrained", *colour, *bn, f"run.dir={tmp_path / 'run'}"]
    with pytest.raises(ArgumentError, match=r"^init=None: Sequential has been trained .*; given keeps its weights, own draws"):
        train(compose(*values))
    written = {}
    for init in ("given", "own"):
        model = parts(compose(*values, f"init={init}")).model
        weight = model.net.get_parameter("0.weight")
        written[init] = model.hnet(1)["0.weight"]
        assert torch.equal(written[init], weight) == (init == "given")
    parts(compose(*values, "method=finetune"))
    parts(compose(*values, "init=given", "method=finetune"))
    run = train(compose(*values, "init=given", "hnet=low_rank"))
    assert OmegaConf.load(run / "config.yaml").init == "given"
    assert "hnet.center" in load_file(run / "model.safetensors")
    assert script("evaluate", f"run={run}", f"imports=[{others}]", cwd=tmp_path).returncode == 0
