"""Training steps of residual networks: other algebras, under hypernetworks, fused; time and memory beside the plain real one.

Contenders are ALGEBRA, ALGEBRA/compiled (its batch norm is), real/fused and quaternion/fused, with the weights held directly;
and real/GENERATOR, quaternion/GENERATOR: the same network under a hypernetwork, in the last of --tasks tasks, with the output
regularizer over all old ones. All have the same width, so that a quaternion network has a quarter of the weights.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from benchmarks import compare, inputs
from benchmarks.contenders import Contender, Field, need_compiler
from benchmarks.measure import Step
from benchmarks.step import OurStep
from hnetcl.algebra import ALGEBRA_DIMS
from hnetcl.bn import BatchNormLayer, FusedBatchNormLayer
from hnetcl.methods import Method
from hnetcl.methods.finetune import Finetune
from hnetcl.methods.output_regularizer import OutputRegularizer
from hnetcl.nets import ResNet
from hnetcl.tasks import Preprocess, Split, Task, TaskSequence
from hnetcl.tasks.batches import Batches
from hnetcl.wrapping import wrap

IMAGE, CLASSES, IMAGES, BETA = (3, 32, 32), 10, 2000, 0.01
GENERATORS = "chunked", "structured"


@dataclass(frozen=True)
class Training:
    """What all contenders do.

    Args:
        depth, width: of the ResNet.
        tasks: T; the last one is trained.
        batch: images in a step.
        compression: trainable values of a hypernetwork per value that it writes.
        device: where.
    """

    depth: int
    width: int
    tasks: int
    batch: int
    compression: float
    device: torch.device

    @cached_property
    def task(self) -> Task:
        """Random images with random labels, on the device."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (IMAGES, *IMAGE), generator=generator, dtype=torch.uint8).to(self.device)
        split = Split(images, torch.randint(CLASSES, (IMAGES,), generator=generator).to(self.device))
        centre, spread = (torch.full((3, 1, 1), value, device=self.device) for value in (0.5, 0.29))
        return Task(tuple(map(str, range(CLASSES))), split, split, split, Preprocess(centre, spread))

    def step(self, algebra: Any, hnet: str = "direct", norm: Any = BatchNormLayer, backend: Any = "closed_form") -> Step:
        """A step as the trainer takes it."""
        if backend == "compiled":
            need_compiler(self.device)
        torch.manual_seed(0)
        layer = partial(norm, algebra=algebra, backend=backend)
        net = ResNet(IMAGE, CLASSES, layer, depth=self.depth, width=self.width, algebra=algebra)
        widths: dict[str, Any] = {
            "hidden": (64, 64),
            "embedding_dim": 96,
            "chunk_embedding_dim": 32,
            "compression": self.compression,
        }
        model = wrap(net, self.tasks, hnet=hnet, **({} if hnet == "direct" else widths)).to(self.device)
        method: Method = Finetune() if hnet == "direct" else OutputRegularizer(beta=BETA)
        batches = Batches(self.task, self.batch, torch.Generator(self.device).manual_seed(0))
        return OurStep(model, method, TaskSequence("random", (self.task,) * self.tasks), batches)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--depth", type=int, default=20, help="of the ResNet (default %(default)s)")
    parser.add_argument("--width", type=int, default=16, help="of its first stage (default %(default)s)")
    parser.add_argument("--tasks", type=int, default=10, help="of which the last one is trained (default %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="images in a step (default %(default)s)")
    parser.add_argument("--compression", type=float, default=0.95, help="of the hypernetworks (default %(default)s)")
    compare.add_arguments(parser)


def field(arguments: Namespace, device: torch.device) -> Field:
    """Every algebra, generator and norm.

    Raises:
        ArgumentError: a number is too small, or what the network or the hypernetwork refuses.
    """
    inputs.at_least(2, arguments, "tasks", "batch")
    inputs.at_least(1, arguments, "width", "rounds")
    asked = {name: getattr(arguments, name) for name in ("depth", "width", "tasks", "batch", "compression")}
    training = Training(**asked, device=device)
    step, base = training.step, "real"
    found = [Contender(base, partial(step, base))]
    for algebra in (name for name in ALGEBRA_DIMS if name != base):
        found += [Contender(algebra, partial(step, algebra), base)]
        found += [Contender(f"{algebra}/compiled", partial(step, algebra, backend="compiled"), base)]
    for algebra in (base, "quaternion"):
        found += [Contender(f"{algebra}/{hnet}", partial(step, algebra, hnet), algebra) for hnet in GENERATORS]
        found += [Contender(f"{algebra}/fused", partial(step, algebra, norm=FusedBatchNormLayer), algebra)]
    bytes_of_batch = 4 * arguments.batch * 3 * 32 * 32
    measure = partial(compare.compare, unit_bytes=bytes_of_batch, rounds=arguments.rounds, device=device)
    return Field(found, asked, measure)
