"""What a training may be told beside its method: labels smoothed, gradients clipped, rates by schedule, tasks ended early."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stops import StopsOnce
from torch import Tensor, nn

from hnetcl.bn import BatchNormLayer
from hnetcl.build import build
from hnetcl.cli.jobs import train
from hnetcl.config import Config
from hnetcl.errors import ArgumentError, StoppedError
from hnetcl.methods import Method, active_only
from hnetcl.methods.finetune import Finetune
from hnetcl.methods.joint import Joint
from hnetcl.methods.output_regularizer import OutputRegularizer
from hnetcl.methods.replay import Replay
from hnetcl.methods.si import SI
from hnetcl.model import HyperModel
from hnetcl.nets import MLP
from hnetcl.tasks import TaskSequence, load_images, loss_of, split_sequence
from hnetcl.training import Observer, OptimizerFactory, RunDirectory, TaskEnd, Trainer
from hnetcl.training.clip import clip_gradients
from hnetcl.training.decay import undecayed
from hnetcl.training.early_stopping import held_out_loss
from hnetcl.training.optimizers import adam, adamw, sgd
from hnetcl.training.schedules import curve
from hnetcl.wrapping import wrap

# ---------------------------------------------------------------------- smoothed labels


def test_smoothing_is_torchs_where_all_classes_come_into_question() -> None:
    logits, y = torch.randn(7, 5), torch.randint(5, (7,))
    for s in (0.0, 0.1, 0.9):
        torch.testing.assert_close(loss_of("cross_entropy", logits, y, s), F.cross_entropy(logits, y, label_smoothing=s))


@pytest.mark.parametrize("own", [False, True])
def test_smoothing_leaves_classes_out_that_the_loss_does_not_look_at(own: bool) -> None:
    """As torch's of the others alone; those left out have no gradient. With a mask for all samples, or one of each."""
    logits, y = torch.randn(6, 5, requires_grad=True), torch.tensor([0, 3, 0, 3, 3, 0])
    active = torch.tensor([True, False, False, True, True])
    loss = loss_of("cross_entropy", active_only(logits, active.expand(6, 5) if own else active), y, 0.2)
    expected = F.cross_entropy(logits[:, active], torch.tensor([0, 1, 0, 1, 1, 0]), label_smoothing=0.2)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    assert not gradient[:, ~active].any()


# ---------------------------------------------------------------------- clipped gradients


@pytest.mark.parametrize("largest", [0.1, 3.0, 100.0])
def test_clipping_is_torchs(largest: float) -> None:
    """Of gradients of several types; one that is short enough stays as it is."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(n, dtype=d)) for n, d in ((4, torch.float32), (9, torch.float64))]
    parameters.append(nn.Parameter(torch.zeros(3)))
    for p in parameters[:2]:
        p.grad = torch.randn_like(p)
    before = [p.grad.clone() for p in parameters[:2] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(before)
    clip_gradients(parameters, norm, largest)
    found = [p.grad.clone() for p in parameters[:2] if p.grad is not None]
    for p, gradient in zip(parameters, before, strict=False):
        p.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(parameters, largest)
    torch.testing.assert_close(found, [p.grad for p in parameters[:2]])
    assert (largest > float(norm)) == all(torch.equal(a, b) for a, b in zip(found, before, strict=True))


def test_what_is_not_finite_is_left_for_the_watch() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([1.0, torch.inf, 2.0])
    clip_gradients([parameter], torch.tensor(torch.inf), 0.1)
    assert parameter.grad.tolist() == [1.0, float("inf"), 2.0]


# ---------------------------------------------------------------------- schedules


def test_steps_of_a_schedule() -> None:
    """The rate falls where a share of the steps is done, to the step; linear goes to zero."""
    rates = [curve("step", [0.3, 0.7], 0.5)(k / 10) for k in range(10)]
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert [curve("step")(k / 4) for k in range(4)] == pytest.approx([1, 1, 0.1, 0.01])
    assert [curve("linear")(k / 4) for k in range(5)] == [1, 0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"milestones": [0.5]}, r"milestones=\[0\.5\]: goes unused with schedule=cosine; allowed with schedule=step"),
        ({"schedule": "linear", "factor": 0.5}, "factor=0.5: goes unused with schedule=linear"),
        ({"schedule": "step", "milestones": [0.5, 0.5]}, r"milestones=\[0\.5, 0\.5\]: must rise"),
        ({"schedule": "step", "milestones": [0.5, 1.0]}, r"milestones=\[0\.5, 1\.0\]: every value must be greater than 0 and"),
        ({"schedule": "step", "milestones": []}, r"milestones=\[\]: must not be empty"),
        ({"schedule": "step", "factor": 1.0}, "factor=1.0: must be greater than 0 and less than 1"),
        ({"schedule": "steps"}, "schedule=steps: did you mean step"),
        ({"decays": "weights"}, "decays=weights: goes unused with weight_decay=0; allowed with it: all"),
    ],
)
def test_refused_options_of_optimizers(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{message}"):
        adam(**options)


# ---------------------------------------------------------------------- what decays


def names_of(model: HyperModel, parameters: set[nn.Parameter]) -> set[str]:
    return {name for name, p in model.named_parameters() if p in parameters}


def test_what_is_no_weight_does_not_decay() -> None:
    """As the network's layers have it, gamma of quaternion numbers (three axes) included; of a hypernetwork, its own."""
    norm = BatchNormLayer(8, algebra="quaternion")
    net = nn.Sequential(nn.Linear(3, 8), norm, nn.LayerNorm(8), nn.PReLU(8), nn.Linear(8, 2))
    direct = wrap(net, 2, hnet="direct", per_task=["4.*"])
    shared = {f"hnet.shared.{name}" for name in ("0/bias", "1/weight", "1/bias", "2/weight", "2/bias", "3/weight")}
    assert names_of(direct, undecayed(direct)) == shared
    partly = wrap(nn.Sequential(nn.Linear(3, 8), BatchNormLayer(8), nn.Linear(8, 2)), 2, generate=["1.*"], shared="trained")
    found = names_of(partly, undecayed(partly))
    assert {name for name in found if name.startswith("net.")} == {"net.0.bias", "net.2.bias"}
    own = {name: p for name, p in partly.named_parameters() if name.startswith("hnet.")}
    assert all((name in found) == (p.ndim < 2) for name, p in own.items() if not name.endswith("embedding"))


@pytest.mark.parametrize("maker", [adamw, sgd])
def test_weights_alone_decay(maker: Callable[..., OptimizerFactory]) -> None:
    """Without gradients of the loss, all else stands still."""
    net = nn.Sequential(nn.Linear(3, 8), BatchNormLayer(8), nn.Linear(8, 2))
    model = wrap(net, 2, hnet="direct", per_task=["2.*"])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    still, before = undecayed(model), {p: p.detach().clone() for p in model.parameters()}
    optimizer, _ = maker(lr=0.1, weight_decay=0.5, decays="weights", schedule="constant").make(model, 1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {p for p, old in before.items() if p.requires_grad and not torch.equal(p, old)}
    assert names_of(model, moved) == {"hnet.shared.0/weight"}
    assert not moved & still


# ---------------------------------------------------------------------- tasks that end early


@pytest.fixture
def sequence(data_root: Path) -> TaskSequence:
    return split_sequence(lambda _: load_images("tiny", data_root), num_tasks=3, val_size=20)


def trainer(sequence: TaskSequence, method: Method | None = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    net = MLP(sequence.in_shape, sequence.num_classes, hidden=(16,), norm=BatchNormLayer)
    own = {"hnet": "direct"} if method is not None else {"hidden": [16], "embedding_dim": 8, "chunk_embedding_dim": 8}
    model = wrap(net, len(sequence), init="own", **own)
    options = {"steps": 70, "batch_size": 20, "statistics": "none", **options}  # five steps an epoch
    optimizer = options.pop("optimizer", adam(lr=0.05, schedule="constant"))
    return Trainer(
        model, sequence, method or OutputRegularizer(), optimizer, torch.Generator().manual_seed(0), "task", **options
    )


class Watches(Observer):
    """Keeps what is learned before every step, and how many a task took."""

    def __init__(self, training: Trainer) -> None:
        self.training = training
        self.before: dict[tuple[int, int], dict[str, Tensor]] = {}
        self.task = 0

    def on_task_start(self, task: int, steps: int, steps_before: int) -> None:
        self.task = task

    def on_tick(self, step: int) -> None:
        tensors = self.training.model.saved_tensors()
        self.before[self.task, step - 1] = {name: value.clone() for name, value in tensors.items()}

    def on_task_end(self, end: TaskEnd) -> None:
        tensors = self.training.model.saved_tensors()
        self.before[self.task, -1] = {name: value.clone() for name, value in tensors.items()}

    def steps(self, task: int) -> int:
        return max(step for of, step in self.before if of == task) + 1


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_task_ends_with_its_best_epoch(sequence: TaskSequence) -> None:
    """Up to its end it is the training without patience; then it is the state of the epoch with the lowest loss."""
    early, whole = trainer(sequence, patience=2), trainer(sequence)
    seen, all_ = Watches(early), Watches(whole)
    result, _ = early.fit(observers=[seen]), whole.fit(observers=[all_])
    taken = [seen.steps(task) for task in range(3)]
    assert min(taken) < 70
    assert result.steps == sum(taken)
    assert all(steps % 5 == 0 for steps in taken)
    for step in range(taken[0]):
        assert same(seen.before[0, step], all_.before[0, step])
    best = next(step for step in range(5, 71, 5) if same(all_.before[0, step], seen.before[0, -1]))
    assert best == taken[0] - 10  # two epochs that were not better
    training = trainer(sequence, patience=2)
    run, losses = training._start(0, 70).run, {}
    for step in range(5, taken[0], 5):
        training.model.load_tensors(all_.before[0, step])
        losses[step] = held_out_loss(run, 0, 7)
    assert min(losses, key=losses.__getitem__) == best


@pytest.mark.parametrize("method", [SI(), Replay(size=12)], ids=["si", "replay"])
def test_what_a_method_keeps_of_its_steps_goes_back_too(method: Method, sequence: TaskSequence) -> None:
    """A path integral, or a memory: as if the training had ended then."""
    kept: list[tuple[int, dict[str, Tensor]]] = []
    training = trainer(sequence, method, patience=1)
    step, end = method.after_step, method.end_task

    def after_step(run: Any, *rest: Any) -> None:
        step(run, *rest)
        if run.task == 0:
            kept.append((run.step + 1, {name: value.clone() for name, value in method.task_state().items()}))

    def end_task(run: Any) -> None:
        if run.task == 0:
            kept.append((-1, {name: value.clone() for name, value in method.task_state().items()}))
        end(run)

    method.after_step, method.end_task = after_step, end_task  # type: ignore[method-assign, assignment]
    training.fit()
    *steps, (_, last) = kept
    assert same(last, steps[-1 - 5][1])
    assert not same(last, steps[-1][1])


def test_joint_training_looks_at_all_tasks(sequence: TaskSequence) -> None:
    training = trainer(sequence, Joint(), patience=1)
    current = training._start(2, 70)
    assert current.early is not None
    assert (current.early.every, list(current.early.tasks)) == (15, [0, 1, 2])


@pytest.mark.parametrize("method", [None, Replay(size=12)], ids=["hypernetwork", "replay"])
@pytest.mark.parametrize("after", [8, 12])
def test_a_training_with_patience_goes_on_bit_for_bit(
    method: Method | None, after: int, sequence: TaskSequence, tmp_path: Path
) -> None:
    """In the middle of an epoch, with what was best so far; three evaluations come before the steps."""
    options: dict[str, Any] = {"patience": 2, "clip": 0.5, "accumulate": 2, "label_smoothing": 0.1}
    methods = [None if method is None else Replay(size=12) for _ in range(3)]
    directory = RunDirectory(tmp_path)
    directory.create()
    with pytest.raises(StoppedError, match=f"in task 0, after step {after}"):
        trainer(sequence, methods[0], **options).fit(directory, stop=StopsOnce(3 + after - 1))
    halves, whole = trainer(sequence, methods[1], **options), trainer(sequence, methods[2], **options)
    results = [halves.fit(directory), whole.fit()]
    assert results[0].steps == results[1].steps
    assert same(halves.model.saved_tensors(), whole.model.saved_tensors())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"clip": 0.5}, "clip=0.5: .* clip=None"),
        ({"label_smoothing": 0.5}, r"label_smoothing=0\.5: .* label_smoothing=0\.0"),
        ({"patience": 3}, "patience=3: .* patience=None"),
        ({"accumulate": 2}, "accumulate=2: .* accumulate=1"),
        ({"optimizer": adam(schedule="step", lr=0.05, factor=0.5)}, r"optimizer\.schedule=step: .* optimizer\.schedule=cons"),
        ({"optimizer": adam(schedule="constant", lr=0.05, warmup=0.3)}, r"optimizer\.warmup=0\.3: .* optimizer\.warmup=None"),
    ],
)
def test_a_checkpoint_knows_the_options(options: dict[str, Any], told: str, sequence: TaskSequence, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.create()
    short: dict[str, Any] = {"steps": 6}
    trainer(sequence, **short).fit(directory)
    with pytest.raises(ArgumentError, match=told):
        trainer(sequence, **{**short, **options}).fit(directory)


def test_milestones_are_of_the_program(sequence: TaskSequence, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.create()
    makers = [sgd(schedule="step", milestones=[0.5, share]) for share in (0.6, 0.6, 0.7)]
    for maker in makers[:2]:
        trainer(sequence, steps=2, optimizer=maker).fit(directory)
    with pytest.raises(ArgumentError, match="milestones"):
        trainer(sequence, steps=2, optimizer=makers[2]).fit(directory)


def test_older_checkpoints_are_of_trainings_without(sequence: TaskSequence, tmp_path: Path) -> None:
    """They name none of these options, and go on."""
    directory = RunDirectory(tmp_path)
    directory.create()
    with pytest.raises(StoppedError):
        trainer(sequence, steps=9).fit(directory, stop=StopsOnce(3 + 3))
    state = directory.load_checkpoint()
    assert state
    for name in ("label_smoothing", "clip", "patience", "accumulate", "optimizer.decays", "optimizer.milestones"):
        del state["program"][name]
    del state["standing"]["spared"]
    directory.save_checkpoint(state)
    directory.previous.unlink(missing_ok=True)
    found, expected = trainer(sequence, steps=9), trainer(sequence, steps=9)
    assert found.fit(directory).steps == expected.fit().steps == 27
    assert same(found.model.saved_tensors(), expected.model.saved_tensors())


# ---------------------------------------------------------------------- no option is taken and not used

CHANGES = [
    "trainer.label_smoothing=0.3",
    "trainer.clip=0.05",
    "trainer.patience=1",
    "trainer.accumulate=2",
    "optimizer.schedule=linear",
    "optimizer.schedule=step",
    "optimizer.schedule=step optimizer.milestones=[0.25]",
    "optimizer.schedule=step optimizer.factor=0.7",
    "optimizer.weight_decay=0.5",
    "optimizer.weight_decay=0.5 optimizer.decays=weights",
    "trainer.precision=bfloat16 trainer.clip=0.05 trainer.accumulate=2",
]
NET = ["net=lenet", "net.channels=[8]", "net.hidden=[8]", "bn=real", "bn.backend=closed_form"]


def test_every_option_changes_a_training(tiny: list[str], compose: Callable[..., Config], tmp_path: Path) -> None:
    """Of a network of convolutions; no two do the same."""
    small = [word for word in tiny if not word.startswith(("hnet.", "net.", "trainer.steps"))]
    found: dict[str, Tensor] = {}
    for options in ("", *CHANGES):
        config = compose(*small, "method=finetune", *NET, "trainer.steps=18", *options.split())
        torch.manual_seed(0)
        parts = build(config, torch.device("cpu"))
        values = {key: value for key, value in config.trainer.items() if key not in ("threads", "deterministic", "precision")}
        values |= {"evaluate": "last", "statistics": "none"}
        generator = torch.Generator().manual_seed(0)
        Trainer(parts.model, parts.sequence, parts.method, parts.optimizer, generator, **values).fit()
        found[options] = torch.cat([value.flatten().float() for value in parts.model.saved_tensors().values()])
        assert found[options].isfinite().all()
        assert not any(torch.equal(found[options], found[other]) for other in found if other != options)


REFUSED = {
    "trainer.clip=0": "trainer.clip=0: must be greater than 0",
    "trainer.label_smoothing=1": "trainer.label_smoothing=1: must be at least 0 and less than 1",
    "trainer.patience=0": "trainer.patience=0: must be at least 1",
    "trainer.accumulate=0": "trainer.accumulate=0: must be at least 1",
    "trainer.accumulate=9": "trainer.accumulate=9: leaves fewer than two images in a micro-batch; allowed: 1 to 8, for a step",
    "trainer.patience=2 task.val_size=0": "trainer.patience=2: needs held-out images (task.val_size), and task 0 has none",
    "trainer.patience=2 trainer.epochs=1": "trainer.patience=2: goes unused, for no task takes more than an epoch",
    "trainer.label_smoothing=0.1 task=regression_1d": "trainer.label_smoothing=0.1: is of classes, and the sequence is a",
    "trainer.label_smoothing=0.1 method=icarl scenario=class": "trainer.label_smoothing=0.1: is not for ICaRL: its loss is a",
    "trainer.patience=2 method=icarl scenario=class": "trainer.patience=2: is not for ICaRL, which classifies otherwise than",
    "trainer.patience=2 method=gdumb": "trainer.patience=2: is not for GDumb: the images of the current task are not what",
    "optimizer.milestones=[0.5]": "optimizer.milestones=[0.5]: goes unused with schedule=cosine",
    "optimizer.decays=weights": "optimizer.decays=weights: goes unused with weight_decay=0",
}


@pytest.mark.parametrize(("options", "message"), REFUSED.items())
def test_refused_in_one_line(
    options: str, message: str, tiny: list[str], compose: Callable[..., Config], tmp_path: Path
) -> None:
    """Before a run has a directory."""
    words, left_out = options.split(), ["hnet."] if "method" in options else []
    if "task=regression_1d" in words:
        left_out = ["task.", "net.", "hnet."]
    words += ["trainer.steps=null"] if "epochs" in options else []
    small = [word for word in tiny if not word.startswith(tuple(left_out))]
    with pytest.raises(ArgumentError) as caught:
        train(compose(*small, *words, f"run.dir={tmp_path / 'run'}"))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_finetune_takes_all(sequence: TaskSequence) -> None:
    options: dict[str, Any] = {"patience": 1, "clip": 0.5, "accumulate": 3, "label_smoothing": 0.1, "steps": 12}
    assert trainer(sequence, Finetune(), **options).fit().matrix[-1].isfinite().all()
