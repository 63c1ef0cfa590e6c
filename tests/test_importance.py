"""What counts more is held more: Fisher information, masks, and the authors' own library with both."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from hnetcl.algebra import ALGEBRAS
from hnetcl.bn import BatchNormLayer, writable_parameters
from hnetcl.bn.statistics import STATS
from hnetcl.build import build
from hnetcl.cli.jobs import train
from hnetcl.config import Config
from hnetcl.errors import ArgumentError
from hnetcl.hnets import BaseHyperNetwork, DirectHyperNetwork, HyperNetwork
from hnetcl.importance import fisher_information, head_masks
from hnetcl.methods.output_regularizer import OutputRegularizer
from hnetcl.model import HyperModel
from hnetcl.nets import MLP, LeNet
from hnetcl.training import RunDirectory, Trainer


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


NETS: dict[str, Callable[..., nn.Module]] = {
    "mlp": lambda **options: MLP((1, 16, 16), 3, hidden=(8,), **options),
    "lenet": lambda **options: LeNet((1, 16, 16), 3, channels=(4, 4), hidden=(8,), **options),
}


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 16, 16)


def model(algebra: Any, stats: Any, net: str = "mlp") -> HyperModel:
    """A small network of that algebra, each of whose two tasks has seen two batches."""
    network = NETS[net](algebra=algebra, norm=lambda width: BatchNormLayer(width, algebra=algebra, stats=stats))
    initial = {name: value.detach().clone() for name, value in writable_parameters(network).items()}
    shapes = {name: value.shape for name, value in initial.items()}
    found = HyperModel(network, HyperNetwork(shapes, 2, "chunked", hidden=(8,), chunk_size=100, initial=initial))
    for task in (0, 1, 0, 1):
        found(images(16) + task, task)
    return found


@pytest.mark.parametrize("algebra", ALGEBRAS)
@pytest.mark.parametrize("stats", [stats for stats in STATS if stats != "batch"])
@pytest.mark.parametrize("net", NETS)
def test_fisher_information_sample_by_sample(algebra: str, stats: str, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of one image at a time, of the labels that were drawn; by the task's own row; nothing is changed."""
    monkeypatch.setattr("hnetcl.importance.fisher.HELD_AT_ONCE", 9 * 2500)
    network, x = model(algebra, stats, net), images(20) + 1
    before = {name: value.clone() for name, value in network.saved_tensors().items()}
    drawn: list[Tensor] = []
    draw = torch.multinomial

    def noted(probabilities: Tensor, *rest: Any, **named: Any) -> Tensor:
        drawn.append(draw(probabilities, *rest, **named))
        return drawn[-1]

    monkeypatch.setattr(torch, "multinomial", noted)
    actual = fisher_information(network.train(), 1, x, torch.Generator().manual_seed(0))
    assert network.training
    for name, value in network.saved_tensors().items():
        assert torch.equal(value, before[name])

    network.eval()
    expected = torch.zeros(network.hnet.num_generated)
    for image, y in zip(x, torch.cat(drawn)[:, 0], strict=True):
        params = {name: value.detach().requires_grad_() for name, value in network.hnet(1).items()}
        loss = F.cross_entropy(network.run(params, image[None], 1), y[None])
        found = torch.autograd.grad(loss, list(params.values()))
        expected += torch.cat([gradient.flatten() for gradient in found]).square() / len(x)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-7)
    assert actual.shape == (network.hnet.num_generated,)
    assert (actual > 0).any()


class Softmax(nn.Module):
    """logits = W x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def test_fisher_information_of_softmax_regression() -> None:
    """Is p_k (1 - p_k) x_i^2 in closed form: over many drawn labels the estimate comes close to it."""
    net = Softmax()
    initial = {"weight": net.weight.detach().clone()}
    network = HyperModel(net, DirectHyperNetwork({"weight": (3, 4)}, 2, initial, per_task=()))
    x = torch.randn(4)
    p = (initial["weight"] @ x).softmax(0)
    expected = (p * (1 - p))[:, None] * x.square()
    actual = fisher_information(network, 0, x.expand(40_000, 4), torch.Generator().manual_seed(0))
    torch.testing.assert_close(actual.reshape(3, 4), expected, rtol=0.03, atol=0)


def test_fisher_information_needs_samples_apart() -> None:
    with pytest.raises(ArgumentError, match="importance=fisher: needs batch norm whose statistics don't depend on the batch"):
        fisher_information(model("real", "batch"), 0, images(4), torch.Generator())


def test_fisher_and_batch_statistics_are_refused_at_once(compose: Callable[..., Config]) -> None:
    with pytest.raises(ArgumentError, match=r"method.importance=fisher: needs batch norm whose statistics"):
        build(compose("bn.stats=batch", "method.importance=fisher"), torch.device("cpu"))


@pytest.mark.parametrize("weight", [(6, 5), (1, 6, 5)])
def test_head_masks_by_hand(weight: tuple[int, ...]) -> None:
    shapes = {"body.weight": (5, 3), "head.weight": weight, "norm": (5,), "head.bias": (6,)}
    outputs = [[0, 1], [2, 5, 3], []]
    masks = head_masks(shapes, outputs)
    for task, own in enumerate(outputs):
        expected = [1] * 15
        for output in range(6):
            expected += [int(output in own)] * 5
        expected += [1] * 5 + [int(output in own) for output in range(6)]
        assert masks[task].int().tolist() == expected


@pytest.mark.parametrize(
    ("shapes", "outputs", "head", "message"),
    [
        ({"head.weight": (4, 5)}, [[4]], "head.*", "outputs=.*: must be from 0 to 3"),
        ({"head.weight": (4, 5)}, [[-1]], "head.*", "outputs=.*: must be from 0 to 3"),
        ({"head.weight": (4, 5)}, [[0]], "out.*", "head=out.*: matches none of head.weight"),
        ({"head.weight": (4, 1, 5)}, [[0]], "head.*", r"head=head.*: head.weight has shape \(4, 1, 5\)"),
    ],
)
def test_refused_masks(shapes: dict[str, Sequence[int]], outputs: list[list[int]], head: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        head_masks(shapes, outputs, head)


FISHER = ["method.importance=fisher", "method.fisher_samples=20", "method.lookahead=true", "method.tasks_at_once=1"]
FISHER += ["method.targets_dtype=bfloat16", "method.targets_device=cpu", "method.beta=1", "trainer.steps=8"]


def test_a_resumed_run_knows_the_importance(
    tiny: list[str], compose: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line, with every option; without the weights the third task would not start."""
    whole = Trainer._run_task

    def dies_in_the_last_task(self: Trainer, task: int) -> None:
        if task == 2:
            raise KeyboardInterrupt
        whole(self, task)

    run = train(compose(*tiny, *FISHER, f"run.dir={tmp_path / 'run'}"))
    died = compose(*tiny, *FISHER, f"run.dir={tmp_path / 'died'}")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_run_task", dies_in_the_last_task)
        with pytest.raises(KeyboardInterrupt):
            train(died)
    state = RunDirectory(tmp_path / "died").load_checkpoint()
    assert state is not None
    fisher = state["method"]["fisher"]
    assert len(fisher) == 2
    torch.testing.assert_close(fisher.mean(1), torch.ones(2))
    train(compose(*tiny, *FISHER, f"run.dir={tmp_path / 'died'}", "resume=true"))
    first, second = (load_file(path / "model.safetensors") for path in (run, tmp_path / "died"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


class Theirs(BaseHyperNetwork):
    """hypnettorch's hypernetwork behind our interface."""

    def __init__(self, inner: Any, shapes: dict[str, Sequence[int]], num_tasks: int) -> None:
        super().__init__(shapes, num_tasks)
        self.inner = inner

    def generate(self, tasks: Tensor) -> dict[str, Tensor]:
        values = [self.inner.forward(cond_id=int(task)) for task in tasks]
        return {name: torch.stack([each[place].flatten() for each in values]) for place, name in enumerate(self.shapes)}

    def fresh_entries(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def task_parameters(self) -> list[nn.Parameter]:
        return list(self.inner.conditional_params)

    @property
    def embeddings(self) -> None:
        return None


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize("fisher", [False, True])
@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("task_weights", [None, [2.0, 0.5]])
def test_hypnettorch_agrees(lookahead: bool, fisher: bool, heads: bool, task_weights: list[float] | None) -> None:
    """The authors' own library: its regularizer with its Fisher weights, heads, scaling and change of theta."""
    pytest.importorskip("hypnettorch", reason="hypnettorch is not installed (it is in the extra `peers`)")
    from hypnettorch.hnets import HMLP
    from hypnettorch.mnets import mlp
    from hypnettorch.utils.hnet_regularizer import calc_fix_target_reg, get_current_targets
    from hypnettorch.utils.optim_step import calc_delta_theta

    mnet = mlp.MLP(n_in=5, n_out=6, hidden_layers=[4], no_weights=True, verbose=False)
    names = ["body.weight", "body.bias", "head.weight", "head.bias"]
    shapes = dict(zip(names, mnet.param_shapes, strict=True))
    inner = HMLP(mnet.param_shapes, cond_in_size=3, layers=(6,), num_cond_embs=3, verbose=False).double()
    hnet = Theirs(inner, shapes, 3)
    theirs = [[torch.rand(shape, dtype=torch.float64) for shape in mnet.param_shapes] for _ in range(2)]
    outputs = [[0, 1], [2, 3], [4, 5]]

    method = OutputRegularizer(
        beta=1.0,
        task_weights=task_weights,
        lookahead=lookahead,
        importance="fisher" if fisher else "none",
        masks=head_masks(shapes, outputs=outputs) if heads else None,
    )
    if fisher:
        method.load_state_dict({"fisher": torch.stack([torch.cat([v.flatten() for v in each]) for each in theirs])})
    optimizer = torch.optim.SGD(hnet.parameters(), 0.1)
    method.hold(hnet, 2, optimizer, torch.Generator())
    targets = get_current_targets(2, inner)
    with torch.no_grad():
        for p in hnet.parameters():
            p.add_(torch.randn_like(p) / 10)
    sum(w.square().sum() for w in inner.forward(cond_id=2)).backward()
    changes = calc_delta_theta(torch.optim.SGD(inner.unconditional_params, 0.1), False) if lookahead else None
    expected = calc_fix_target_reg(
        inner,
        2,
        targets=targets,
        dTheta=changes,
        mnet=mnet,
        inds_of_out_heads=outputs[:2] if heads else None,
        fisher_estimates=theirs if fisher else None,
        reg_scaling=task_weights,
    )
    actual = method.penalty(hnet)
    assert actual is not None
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, list(hnet.parameters()), allow_unused=True) for value in (actual, expected))
    )
