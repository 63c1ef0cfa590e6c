"""`BatchNormLayer(sync=True)` on real processes against one process that has all their values."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from hnetcl.algebra import ALGEBRAS
from hnetcl.bn import BatchNormLayer, ConvBatchNorm, auxiliary_loss, batchnorm_layers
from hnetcl.bn.statistics import STATS
from hnetcl.kernels.whitening import WHITENINGS
from hnetcl.layers import Conv2d

STEPS = 3
Q = 2
assert_close = partial(torch.testing.assert_close, atol=1e-10, rtol=1e-10)


@dataclass(frozen=True)
class Case:
    """A module and how many samples each rank gives it.

    Args:
        fused: behind a convolution, as one layer.
        parts: each rank synchronises with those of its part: all but the last rank, and that one alone.
    """

    algebra: Any
    space: tuple[int, ...] = (2,)
    sizes: tuple[int, ...] = (7, 1, 3)
    fused: bool = False
    parts: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        return Q * ALGEBRAS[self.algebra].dim

    def build(self, sync: bool) -> nn.Module:
        torch.manual_seed(0)
        norm = BatchNormLayer(self.channels, algebra=self.algebra, sync=sync, **self.options)
        conv = Conv2d(self.channels, self.channels, 2, self.algebra, padding=1)
        net = (ConvBatchNorm(conv, norm) if self.fused else norm).double()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter) / 2)
        return net

    def batches(self, world: int) -> list[list[tuple[Tensor, Tensor]]]:
        """For every step and rank, an input of correlated channels and random weights of the output."""
        torch.manual_seed(1)
        mixing = torch.randn(self.channels, self.channels, dtype=torch.float64)
        space = [size + self.fused for size in self.space]

        def batch(n: int) -> tuple[Tensor, Tensor]:
            x = torch.einsum("cd,nd...->nc...", mixing, torch.randn(n, self.channels, *self.space, dtype=torch.float64)) + 3
            return x, torch.randn(n, self.channels, *space, dtype=torch.float64)

        return [[batch(n) for n in self.sizes[:world]] for _ in range(STEPS)]


CASES = {
    **{
        f"{algebra} {whitening} {space}": Case(algebra, space, options={"whitening": whitening})
        for algebra, whitening, space in product(ALGEBRAS, WHITENINGS, [(), (2,), (2, 3)])
    },
    **{f"{algebra} {stats}": Case(algebra, options={"stats": stats}) for algebra, stats in product(ALGEBRAS, STATS)},
    **{f"{algebra} fused": Case(algebra, (2, 3), fused=True) for algebra in ALGEBRAS},
    **{f"{algebra} parts": Case(algebra, parts=True) for algebra in ALGEBRAS},
    **{f"{algebra} without values": Case(algebra, sizes=(5, 0, 4)) for algebra in ALGEBRAS},
    "bare": Case("complex", options={"affine": False, "momentum": None}),
    "one value in all": Case("quaternion", (), sizes=(1, 0, 0)),
}
every_case = pytest.mark.parametrize("name", CASES)


def train(net: nn.Module, batches: list[tuple[Tensor, Tensor]], sent: list[int] | None = None) -> dict[str, Any]:
    """Steps without an optimizer: outputs, gradients, statistics, and how many numbers forward and backward sent."""
    found: dict[str, Any] = {"y": [], "dx": [], "gradients": [], "sent": []}
    sent = [] if sent is None else sent
    for x, form in batches:
        sent.clear()
        x.requires_grad_()
        y = net(x)
        forward = sum(sent)
        loss = (y * form).sum() + auxiliary_loss(net)
        dx, *gradients = torch.autograd.grad(loss, [x, *net.parameters()], materialize_grads=True)
        found["y"].append(y.detach())
        found["dx"].append(dx)
        found["gradients"].append(dict(zip(dict(net.named_parameters()), gradients, strict=True)))
        found["sent"].append((forward, sum(sent) - forward))
    rows = next(iter(batchnorm_layers(nn.Sequential(net)).values())).rows
    return {**found, "rows": {name: row.detach().clone() for name, row in rows.items()}}


def worker(rank: int, world: int, folder: Path) -> None:
    """One rank: runs all cases and leaves what they gave in a file."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    groups = [dist.new_group(part) for part in parts(world)]
    reduce, sent = dist.all_reduce, list[int]()
    found: dict[str, Any] = {}

    def count(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.numel())
        return reduce(tensor, *args, **kwargs)

    with patch.object(dist, "all_reduce", count):
        for name, case in CASES.items():
            net = case.build(sync=True)
            (norm,) = batchnorm_layers(nn.Sequential(net)).values()
            if case.parts:
                norm.process_group = groups[rank == world - 1]
            found[name] = train(net, [step[rank] for step in case.batches(world)], sent)
            sent.clear()
            if norm.stats != "batch":
                net.eval()(case.batches(world)[0][rank][0])
            found[name]["sent in evaluation"] = sum(sent)
    found["alone"] = refusal(groups[1]) if rank == world - 1 else ""
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def parts(world: int) -> list[list[int]]:
    return [[*range(world - 1)], [world - 1]]


def refusal(group: Any) -> str:
    """What a layer that synchronises with itself alone says of one value per channel."""
    layer = BatchNormLayer(4, algebra="complex", sync=True)
    layer.process_group = group
    with pytest.raises(ValueError, match="batch statistics") as error:
        layer(torch.zeros(1, 4))
    return str(error.value)


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank found."""
    world, folder = request.param, tmp_path_factory.mktemp("ranks")
    spawn(worker, (world, folder), nprocs=world)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def together(case: Case, world: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """The ranks that synchronise, and what one process finds that has all their values."""
    for members in parts(world) if case.parts else [[*range(world)]]:
        net = case.build(sync=False)
        steps = [[step[rank] for rank in members] for step in case.batches(world)]
        yield members, train(net, [(torch.cat(x), torch.cat(form)) for x, form in (zip(*step, strict=True) for step in steps)])


@pytest.mark.parametrize("name", [name for name in CASES if name != "one value in all"])
def test_equals_one_process(ranks: list[dict[str, Any]], name: str) -> None:
    """Outputs and input gradients are its slices, parameters' gradients add up to its own, rows are its rows on every rank.

    But for rows that learn: every rank has the whole gradient of them, for ranks are averaged.
    """
    case = CASES[name]
    for members, one in together(case, len(ranks)):
        found = [ranks[rank][name] for rank in members]
        for step in range(STEPS):
            for key in ("y", "dx"):
                assert_close(torch.cat([rank[key][step] for rank in found]), one[key][step])
            for weight, expected in one["gradients"][step].items():
                own = [rank["gradients"][step][weight] for rank in found]
                taught = case.options.get("stats") in ("learnable", "distilled") and weight not in ("weight", "bias")
                assert_close(torch.stack(own).mean(0) if taught else torch.stack(own).sum(0), expected)
        for rank in found:
            assert_close(rank["rows"], one["rows"])


@every_case
def test_nothing_but_sums_travels(ranks: list[dict[str, Any]], name: str) -> None:
    """1 + Q (d + d (d + 1) / 2) numbers forward and Q (d + d^2) backward; none where statistics are given, or in evaluation."""
    case, d = CASES[name], ALGEBRAS[CASES[name].algebra].dim
    expected = 1 + Q * (d + d * (d + 1) // 2), Q * (d + d**2)
    for members in parts(len(ranks)) if case.parts else [[*range(len(ranks))]]:
        alone = len(members) == 1 or case.options.get("stats") in ("frozen", "generated")
        for rank in members:
            assert ranks[rank][name]["sent"] == [(0, 0) if alone else expected] * STEPS
            assert ranks[rank][name]["sent in evaluation"] == 0


def test_one_value_in_all_stays_finite(ranks: list[dict[str, Any]]) -> None:
    """Ranks can't be asked how many values there are without waiting for a GPU: a single one has no variance."""
    for rank in ranks:
        for mean, var in zip(
            *(rank["one value in all"]["rows"][name] for name in ("running_mean", "running_var")), strict=True
        ):
            assert mean.isfinite().all()
            torch.testing.assert_close(var, torch.eye(4).double().expand_as(var) * 0.9**STEPS)


def test_one_value_is_refused_where_there_is_one_rank(ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    """In a process group of its own, and where there is no other process."""
    message = "batch statistics need more than one value per channel, got x of shape (1, 4)"
    assert ranks[-1]["alone"] == message
    assert refusal(None) == message
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert refusal(None) == message
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("algebra", ALGEBRAS)
def test_without_processes_it_is_the_plain_layer(algebra: str) -> None:
    """Where torch.distributed is not up."""
    case = Case(algebra)
    batches = [step[0] for step in case.batches(1)]
    torch.testing.assert_close(train(case.build(sync=True), batches), train(case.build(sync=False), batches), atol=0, rtol=0)
