"""Memory of the process while LeNet trains, by kind of batch norm: does it grow?

Contenders are ALGEBRA/STATS, ALGEBRA/naive for naive whitening, quaternion/BACKEND, ALGEBRA/virtual and ALGEBRA/fused. They
train one after the other in the same process, each with a net and an optimizer of its own. Growth is that of resident memory,
freed memory given back first (on a GPU: of what torch's allocator has handed out), from step --settle to step --steps.
"""

import gc
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.contenders import Absent, Contender, Field, Report, need_compiler
from benchmarks.inputs import at_least
from benchmarks.measure import STATM, Step, resident_bytes
from hnetcl.algebra import ALGEBRA_DIMS
from hnetcl.bn import BatchNormLayer, ConvBatchNorm, VirtualBatchNormLayer, auxiliary_loss, reference_pass
from hnetcl.bn.statistics import STATS
from hnetcl.errors import ArgumentError
from hnetcl.layers import Conv2d
from hnetcl.nets import LeNet

BATCH = 32
SHAPE = 1, 28, 28
CLASSES = 10
WINDOW = 10  # steps over which the highest memory counts


@dataclass(frozen=True)
class Growth:
    """One contender's memory.

    Args:
        name: the contender's.
        settled: the highest after any of the `WINDOW` steps until `--settle`, in bytes.
        final: the highest after any of the last `WINDOW` steps, in bytes.
        growth: from the first to the second, in percent.
    """

    name: str
    settled: int
    final: int
    growth: float


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=1000, help="of training for each contender (default %(default)s)")
    parser.add_argument("--settle", type=int, default=50, help="steps after which memory must not grow (default %(default)s)")


def field(arguments: Namespace, device: torch.device) -> Field:
    """Every algebra in every mode, and every other way to normalize.

    Raises:
        ArgumentError: no steps are left to measure, or this system does not tell how much memory a process has.
    """
    at_least(1, arguments, "steps", "settle")
    if arguments.steps <= arguments.settle:
        raise ArgumentError("steps", arguments.steps, f"must be more than settle={arguments.settle}")
    if device.type == "cpu" and not STATM.exists():
        raise ArgumentError("device", device, f"resident memory is known on Linux only, which tells it in {STATM}")
    settings = {
        "net": "LeNet",
        "shape": [BATCH, *SHAPE],
        "optimizer": "adam",
        "steps": arguments.steps,
        "settle": arguments.settle,
    }
    return Field(contenders(device), settings, partial(measure, steps=arguments.steps, settle=arguments.settle, device=device))


def contenders(device: torch.device) -> list[Contender]:
    """All of them; a build makes a net, and its step trains it."""

    def one(
        name: str, algebra: Any, norm: type[BatchNormLayer | VirtualBatchNormLayer] = BatchNormLayer, **options: Any
    ) -> Contender:
        def build() -> Step:
            if options.get("backend") == "compiled":
                need_compiler(device)
            net = LeNet(SHAPE, CLASSES, algebra=algebra, norm=partial(norm, algebra=algebra, **options))
            if name == "fused":
                _fuse(net)
            return training(net.to(device), device)

        return Contender(f"{algebra}/{name}", build)

    found = []
    for algebra in ALGEBRA_DIMS:
        found += [one(stats, algebra, stats=stats) for stats in STATS]
        if algebra != "real":
            found.append(one("naive", algebra, whitening="naive"))
        if algebra == "quaternion":
            found += [one(backend, algebra, backend=backend) for backend in ("reference", "compiled")]
        found += [one("virtual", algebra, VirtualBatchNormLayer), one("fused", algebra)]
    return found


def training(net: nn.Module, device: torch.device) -> Step:
    """A step on random images and labels, of all parameters; virtual batch norm first takes its reference anew."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    x_ref = torch.randn(BATCH, *SHAPE, device=device)
    is_virtual = any(isinstance(layer, VirtualBatchNormLayer) for layer in net.modules())

    def step() -> Tensor:
        x = torch.randn(BATCH, *SHAPE, device=device)
        y = torch.randint(CLASSES, (BATCH,), device=device)
        if is_virtual:
            with torch.no_grad(), reference_pass(net):
                net(x_ref)
        loss = F.cross_entropy(net(x), y) + auxiliary_loss(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def measure(contenders: Sequence[Contender], steps: int, settle: int, device: torch.device) -> Report:
    """Trains each contender for that many steps; before the first, allocator and threads settle in some that don't count."""
    held = resident_bytes if device.type == "cpu" else partial(torch.cuda.memory_allocated, device)
    figures: list[Growth] = []
    absent: dict[str, str] = {}
    for contender in contenders:
        try:
            step = contender.build()
        except Absent as reason:
            absent[contender.name] = str(reason)
            continue
        if not figures:
            growth(contender.build(), settle + 1, settle, held)
        settled, final = growth(step, steps, settle, held)
        figures.append(Growth(contender.name, settled, final, 100 * (final / settled - 1)))
    header = ["contender", f"MB at step {settle}", f"MB at step {steps}", "growth in percent"]
    rows = [[f.name, f"{f.settled / 1e6:.2f}", f"{f.final / 1e6:.2f}", f"{f.growth:+.3f}"] for f in figures]
    note = "what leaks makes it grow, and should stay below 1 percent"
    return Report(header, rows, note, [asdict(f) for f in figures], absent)


def growth(step: Step, steps: int, settle: int, held: Callable[[], int]) -> tuple[int, int]:
    """What is held when `settle` of `steps` steps are done, and in the end: the highest of a few steps each, in bytes."""
    window = min(WINDOW, settle, steps - settle)

    def highest(count: int) -> int:
        gc.collect()
        return max(_after(step, held) for _ in range(count))

    for _ in range(settle - window):
        step()
    settled = highest(window)
    for _ in range(steps - settle - window):
        step()
    return settled, highest(window)


def _after(step: Step, held: Callable[[], int]) -> int:
    step()
    return held()


def _fuse(net: LeNet) -> None:
    """Makes one layer of every convolution and the batch norm behind it."""
    layers: list[nn.Module] = []
    for layer in net.body:
        before = layers[-1] if layers else None
        if isinstance(layer, BatchNormLayer) and isinstance(before, Conv2d):
            layers[-1] = ConvBatchNorm(before, layer)
        else:
            layers.append(layer)
    net.body = nn.Sequential(*layers)
