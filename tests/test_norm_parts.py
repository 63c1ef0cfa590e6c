"""`bn.name=virtual` and `bn.name=fused`: runs of our networks with them, and what is refused in one line."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import hnetcl
from hnetcl.algebra import ALGEBRAS
from hnetcl.bn import BatchNormLayer, ConvBatchNorm, FusedBatchNormLayer, VirtualBatchNormLayer, fold_batchnorm, norm_layers
from hnetcl.build import build
from hnetcl.cli.jobs import evaluate, train
from hnetcl.config import Config
from hnetcl.errors import ArgumentError
from hnetcl.nets import MLP, LeNet
from hnetcl.tasks import Batches
from hnetcl.training import RunDirectory, Trainer, TrainingStep
from hnetcl.training.references import References

Compose = Callable[..., Config]
VIRTUAL = ["bn=virtual", "bn.algebra=quaternion", "observers=[]"]
LENET = ["net=lenet", "net.channels=[4,8]", "hnet.chunk_size=100", "observers=[]"]
CPU = torch.device("cpu")
pytestmark = [  # raised inside torch's compiler
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
assert_equal = partial(torch.testing.assert_close, atol=0, rtol=0)


def trainer_of(config: Config, **options: Any) -> Trainer:
    """What the main job builds of a configuration."""
    torch.manual_seed(0)
    parts = build(config, CPU)
    values = {"steps": config.trainer["steps"], "batch_size": 16, "eval_batch_size": 64, "compile": "off", **options}
    given = parts.model, parts.sequence, parts.method, parts.optimizer, torch.Generator().manual_seed(0)
    return Trainer(*given, config.scenario, config.inference, **values)


def references(model: nn.Module) -> dict[str, Tensor]:
    """All rows of reference statistics, by name."""
    layers = norm_layers(model)
    assert any(isinstance(layer, VirtualBatchNormLayer) for layer in layers.values())
    return {f"{name}.{row}": value.clone() for name, layer in layers.items() for row, value in layer.rows.items()}


# ---------------------------------------------------------------------- how they are chosen


def test_the_name_alone_chooses_the_part(compose: Compose) -> None:
    """On top of an algebra's YAML, whose keys for bn.name=layer are not there then; what was typed is refused."""
    named, chosen = compose("bn=quaternion", "bn.name=virtual"), compose("bn=virtual", "bn.algebra=quaternion")
    assert named.bn == {**chosen.bn, "whitening": "cholesky"}
    assert "stats" not in named.bn
    assert named.net["algebra"] == chosen.net["algebra"] == "quaternion"
    assert compose("bn=complex", "bn.name=fused").bn == {**compose("bn=complex").bn, "name": "fused"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("bn=virtual bn.stats=tracked", "bn.stats=tracked: there is no such key; allowed: bn.affine, "),
        ("bn.name=virtual bn.stats=tracked", "bn.stats=tracked: there is no such key; allowed: bn.affine, "),
        ("bn.name=virtual bn.momentum=0.2", "bn.momentum=0.2: there is no such key; "),
        ("bn.name=virtul", "bn.name=virtul: did you mean virtual? allowed: fused, layer, virtual"),
    ],
)
def test_refused_where_it_is_composed(words: str, message: str, compose: Compose) -> None:
    with pytest.raises(ArgumentError) as caught:
        compose(*words.split())
    assert str(caught.value).startswith(message)
    assert str(caught.value).count("\n") == 0


NETS = """
import hnetcl
from torch import nn

@hnetcl.register("net", "own")
def own(in_shape, num_outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.BatchNorm1d(8), nn.Linear(8, num_outputs))

@hnetcl.register("net", "asks")
def asks(in_shape, num_outputs, norm, *, uses: bool = True):
    layers = [norm(8)] if uses and norm is not None else []
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 8), *layers, nn.Linear(8, num_outputs))
"""


@pytest.mark.usefixtures("users_parts")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("net=torchvision bn.name=virtual", "virtual: is for networks that ask for their norm layers; allowed with net=torchv"),
        (
            "net=torchvision bn.name=fused",
            "fused: is for networks that ask for their norm layers; allowed with net=torchvision",
        ),
        ("net=own bn=virtual", "virtual: is for networks that ask for their norm layers; allowed with net=own: layer"),
        ("net=own bn=fused", "fused: is for networks that ask for their norm layers; allowed with net=own: layer"),
        ("net=asks bn=fused", "fused: net=asks has no convolution with a norm behind it; allowed with it: layer, virtual"),
        ("net=asks bn=virtual net.uses=false", "virtual: net=asks has no norm layer; allowed with it: layer"),
        ("net=mlp bn.name=fused", "fused: net=mlp has no convolution with a norm behind it; allowed with it: layer, virtual"),
        ("net=mlp bn=virtual net.norm=none", "virtual: would go unused with net.norm=none; allowed with it: layer"),
        ("net=lenet bn=fused net.norm=none", "fused: would go unused with net.norm=none; allowed with it: layer"),
    ],
)
def test_refused_where_it_would_go_unused(words: str, message: str, data_root: Path, compose: Compose, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    small = [
        f"imports=[{tmp_path / 'nets.py'}]",
        f"data.root={data_root}",
        "task.dataset=tiny",
        "task.num_tasks=3",
        "task.val_size=20",
    ]
    with pytest.raises(ArgumentError) as caught:
        build(compose(*words.split(), *small), CPU)
    assert str(caught.value).startswith(f"bn.name={message}")
    assert str(caught.value).count("\n") == 0


@pytest.mark.usefixtures("users_parts")
def test_a_users_network_that_asks_for_its_norm_may_be_virtual(tiny: list[str], compose: Compose, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    values = [value for value in tiny if not value.startswith("net.")]
    run = train(compose(*values, *VIRTUAL[:1], "net=asks", f"imports=[{tmp_path / 'nets.py'}]", f"run.dir={tmp_path / 'run'}"))
    assert load_file(run / "model.safetensors")["net.2.reference_count"].tolist() == [16, 16, 16]


# ---------------------------------------------------------------------- virtual: runs


@pytest.mark.parametrize("extra", [[], ["scenario=class", "method=joint"], ["bn.rows=shared"]], ids=str)
def test_a_run_keeps_its_references(
    extra: list[str], tiny: list[str], compose: Compose, compose_evaluation: Callable[..., Any], tmp_path: Path
) -> None:
    """The model of a run, reloaded, has the recorded accuracies to the last digit, and a reference for every row."""
    run = train(compose(*tiny_for(tiny, extra), *VIRTUAL, *extra, f"run.dir={tmp_path / 'run'}"))
    recorded = RunDirectory(run).read_accuracy()[-1]
    model = hnetcl.load(run)
    assert {value for name, value in references(model.net).items() if name.endswith("count") for value in value.tolist()} == {
        16
    }
    assert evaluate(compose_evaluation(f"run={run}", "device=cpu")) == recorded
    assert sum(recorded) / len(recorded) > 0.5


def tiny_for(tiny: list[str], extra: list[str]) -> list[str]:
    """Without the sizes of a hypernetwork, where there is none."""
    return [value for value in tiny if not (any(word.startswith("method=") for word in extra) and value.startswith("hnet."))]


@pytest.mark.parametrize("stats", ["batch", "1"])
def test_other_statistics_can_be_evaluated(
    stats: str, tiny: list[str], compose: Compose, compose_evaluation: Callable[..., Any], tmp_path: Path
) -> None:
    run = train(compose(*tiny, *VIRTUAL, "trainer.steps=2", f"run.dir={tmp_path}"))
    assert len(evaluate(compose_evaluation(f"run={run}", f"stats={stats}", "device=cpu"))) == 3
    with pytest.raises(ArgumentError, match=r"\Astats=recalibrated: allowed: own, batch, or a task's number\Z"):
        evaluate(compose_evaluation(f"run={run}", "stats=recalibrated", "device=cpu"))


@pytest.mark.parametrize("extra", [[], ["method=joint"], ["scenario=class"]], ids=str)
def test_a_run_that_dies_resumes_to_the_same_numbers(
    extra: list[str], tiny: list[str], compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [*tiny_for(tiny, extra), *VIRTUAL, *extra, "trainer.steps=5"]
    run, died, whole = train(compose(*values, f"run.dir={tmp_path / 'run'}")), tmp_path / "died", Trainer._run_task

    def dies_in_the_last_task(self: Trainer, task: int) -> None:
        if task == 2:
            raise KeyboardInterrupt
        whole(self, task)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_run_task", dies_in_the_last_task)
        with pytest.raises(KeyboardInterrupt):
            train(compose(*values, f"run.dir={died}"))
    train(compose(*values, f"run.dir={died}", "resume=true"))
    assert_equal(load_file(died / "model.safetensors"), load_file(run / "model.safetensors"))
    assert (died / "accuracy.csv").read_bytes() == (run / "accuracy.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        ["generate=norm"],
        ["trainer.precision=bfloat16"],
        ["trainer.eval_batch_size=1"],
        ["trainer.evaluate=last"],
        ["method=lwf"],
        ["method=der", "scenario=class"],
        ["method=ewc"],
        ["method.importance=fisher"],
        ["scenario=class", "inference=agreement", "head=all"],
    ],
    ids=str,
)
def test_it_goes_with_the_rest(extra: list[str], tiny: list[str], compose: Compose, tmp_path: Path) -> None:
    run = train(compose(*tiny_for(tiny, extra), *VIRTUAL, *extra, "trainer.steps=3", f"run.dir={tmp_path}"))
    assert 0 <= json.loads((run / "metrics.json").read_text())["average_accuracy"] <= 1


def test_a_task_with_one_image_is_refused(tiny: list[str], compose: Compose) -> None:
    config = compose(*tiny, *VIRTUAL)
    parts = build(config, CPU)
    data = parts.sequence[1]
    one = type(data.train)(data.train.images[:1], data.train.labels[:1])
    object.__setattr__(data, "train", one)
    with pytest.raises(ArgumentError, match=r"\Abn\.name=virtual: a reference batch .* two images at least; task 1 has 1\Z"):
        References(parts.model, parts.sequence, 16, 0)


def test_lwf_with_one_row_is_refused(tiny: list[str], compose: Compose) -> None:
    """Its two models are the same before the first step only if both normalize alike."""
    extra = ["method=lwf", "scenario=domain"]
    with pytest.raises(ArgumentError, match=r"\Amethod\.name=lwf: .*; allowed with it: bn\.rows=task\Z"):
        build(compose(*tiny_for(tiny, extra), *VIRTUAL, *extra), CPU)
    build(compose(*tiny_for(tiny, extra), *VIRTUAL, *extra, "bn.rows=task"), CPU)


# ---------------------------------------------------------------------- virtual: what the references are


def test_the_untrained_model_has_a_reference_of_every_task(tiny: list[str], compose: Compose) -> None:
    """Of its own training images and under its own parameters; nothing is drawn from the run's generator."""
    trainer = trainer_of(compose(*tiny, *VIRTUAL))
    assert_equal(trainer.generator.get_state(), torch.Generator().manual_seed(0).get_state())
    before = references(trainer.model.net)
    for task in range(3):
        first, _ = Batches(trainer.sequence[task], 16, torch.Generator().manual_seed(0)).draw()
        trainer.model.take_reference(first, task)
    assert_equal(references(trainer.model.net), before)


def test_references_are_taken_with_the_weights_of_now(tiny: list[str], compose: Compose) -> None:
    """Every step finds the row of its task as the weights before it make it, and the rows of others as they were; evaluation
    finds that of the newest task as the weights after the last step make it, and those of tasks to come likewise."""
    trainer = trainer_of(compose(*tiny, *VIRTUAL), steps=3)
    model, step, evaluated = trainer.model, trainer.step, trainer._evaluate
    kept: dict[int, dict[str, Tensor]] = {}

    def require_fresh(tasks: list[int]) -> None:
        now = references(model.net)
        trainer.references.take(tasks)
        assert_equal(references(model.net), now)
        for task, rows in kept.items():
            assert_equal({name: value[task] for name, value in now.items()}, rows)

    def watched(run: Any, inputs: Any) -> Any:
        require_fresh([inputs.task])
        return step(run, inputs)

    def looked(task: int) -> None:
        evaluated(task)
        require_fresh(list(range(task, min(task + 2, 3))))
        kept[task] = {name: value[task].clone() for name, value in references(model.net).items()}

    trainer.step, trainer._evaluate = watched, looked  # type: ignore[assignment, method-assign]
    trainer.fit()
    assert len(kept) == 3


@pytest.mark.parametrize("rows", ["task", "shared"])
def test_joint_training_takes_those_of_all_its_tasks(rows: str, tiny: list[str], compose: Compose) -> None:
    """Each step's own before it, all after the last; where the tasks share one row, it is of images of all of them."""
    extra = ["method=joint", f"bn.rows={rows}", "head=shared"]
    trainer = trainer_of(compose(*tiny_for(tiny, extra), *VIRTUAL, *extra), steps=4)
    step, seen = trainer.step, []

    def watched(run: Any, inputs: Any) -> Any:
        now = references(trainer.model.net)
        trainer.references.take([inputs.task] if rows == "task" else range(run.task + 1))
        assert_equal(references(trainer.model.net), now)
        seen.append(inputs.task)
        return step(run, inputs)

    trainer.step = watched  # type: ignore[assignment]
    trainer.fit()
    assert seen[-4:] == ([0, 1, 2, 0] if rows == "task" else [2] * 4)
    now = references(trainer.model.net)
    trainer.references.take(range(3))
    assert_equal(references(trainer.model.net), now)


@pytest.mark.slow
def test_a_compiled_step_sees_each_new_reference(tiny: list[str], compose: Compose) -> None:
    """One graph, to which rows are given, not baked in: the same rows of statistics as without it."""
    found = []
    for compiled in ("off", "on"):
        trainer = trainer_of(compose(*tiny, *VIRTUAL, "optimizer=sgd"), steps=3)
        trainer.step = TrainingStep(trainer.model, trainer.method, CPU, compiled, "eager")
        trainer.fit()
        found.append(trainer.model.saved_tensors())
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("algebra", ALGEBRAS)
def test_several_tasks_in_one_pass(algebra: str, tiny: list[str], compose: Compose) -> None:
    """`all_tasks` gives each task its own reference, as the tasks one by one do."""
    trainer = trainer_of(compose(*tiny, "bn=virtual", f"bn.algebra={algebra}"))
    model, x = trainer.model.eval(), torch.randn(5, 1, 16, 16)
    with torch.no_grad():
        each = torch.stack([model(x, task) for task in range(3)])
        torch.testing.assert_close(model.all_tasks(x), each, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.plain(1).eval()(x), each[1], atol=1e-5, rtol=1e-5)


def test_networks_without_virtual_layers_are_left_alone(tiny: list[str], compose: Compose) -> None:
    trainer = trainer_of(compose(*tiny))
    before = trainer.model.saved_tensors()
    trainer.references.take(range(3))
    assert_equal(trainer.model.saved_tensors(), before)
    assert not trainer.references.used


# ---------------------------------------------------------------------- fused


@pytest.mark.parametrize("algebra", ALGEBRAS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_fused_networks_compute_what_the_others_do(algebra: Any, training: bool) -> None:
    """Outputs and the gradients of all parameters, drawn alike, under other names in the same order."""
    outcomes = []
    for layer in (BatchNormLayer, FusedBatchNormLayer):
        torch.manual_seed(0)
        net = LeNet((1, 16, 16), 3, partial(layer, algebra=algebra), channels=(4, 8), hidden=(16,), algebra=algebra).double()
        assert sum(isinstance(module, ConvBatchNorm) for module in net.modules()) == (2 if layer is FusedBatchNormLayer else 0)
        x = torch.randn(6, 1, 16, 16, dtype=torch.float64)
        net(x)
        y = net.train(training)(x)
        y.square().sum().backward()
        outcomes.append([y, *(parameter.grad for parameter in net.parameters()), *net.buffers()])
    torch.testing.assert_close(outcomes[1], outcomes[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("extra", [["bn.stats=generated"], ["bn.algebra=complex"], ["hnet=direct", "method=ewc"]], ids=str)
def test_a_fused_run_is_close_to_the_others(extra: list[str], tiny: list[str], compose: Compose, tmp_path: Path) -> None:
    """The same numbers but for rounding, from the same draws."""
    sizes = [value for value in LENET if not ("hnet=direct" in extra and value.startswith("hnet."))]
    values, found = [*tiny_for(tiny, extra), *sizes, *extra, "optimizer=sgd", "trainer.steps=4"], []
    for name in ("layer", "fused"):
        run = train(compose(*values, f"bn.name={name}", f"run.dir={tmp_path / name}"))
        found.append((RunDirectory(run).read_accuracy(), list(load_file(run / "model.safetensors").values())))
        assert hnetcl.load(run)
    torch.testing.assert_close(*(torch.as_tensor(accuracy) for accuracy, _ in found), atol=0.05, rtol=0, equal_nan=True)
    sums = [sum(float(value.double().sum()) for value in values) for _, values in found]
    assert sums[1] == pytest.approx(sums[0], rel=1e-3, abs=1e-3)


def test_a_fused_layer_is_fused_behind_convolutions_only() -> None:
    assert not any(isinstance(module, ConvBatchNorm) for module in MLP((1, 4, 4), 3, FusedBatchNormLayer).modules())
    norm, conv = BatchNormLayer(8), nn.Conv2d(4, 8, 3)
    assert norm.behind(conv) == [conv, norm]
    (pair,) = FusedBatchNormLayer(8).behind(conv)
    assert isinstance(pair, ConvBatchNorm)


def test_fused_networks_fold() -> None:
    """For inference a fused network folds whole, as any other does."""
    norm = partial(FusedBatchNormLayer, algebra="quaternion")
    net = LeNet((1, 16, 16), 3, norm, channels=(4, 8), hidden=(16,), algebra="quaternion")
    x = torch.randn(6, 1, 16, 16)
    net(x)
    folded = fold_batchnorm(net.eval())
    assert not norm_layers(folded)
    assert norm_layers(net)
    torch.testing.assert_close(folded(x), net(x), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_fused_step_compiles(tiny: list[str], compose: Compose) -> None:
    found = []
    for compiled in ("off", "on"):
        trainer = trainer_of(compose(*tiny, *LENET, "bn.name=fused", "optimizer=sgd"), steps=2)
        trainer.step = TrainingStep(trainer.model, trainer.method, CPU, compiled, "eager")
        trainer.fit()
        found.append(trainer.model.saved_tensors())
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)
