"""Training steps of methods beside a plain torch loop and Avalanche's strategies, on split MNIST.

The step is that of the last of five tasks, of an MLP with one head over all ten classes, by fused Adam. The plain loop draws
its batches on the device, as ours do. Avalanche's strategies are those of its documentation, without evaluation and loggers.
Their data loader reads --data: the images of its SplitMNIST with its transforms, or tensors that were made before.
"""

import gzip
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import inputs, speed
from benchmarks.contenders import Contender, Field
from benchmarks.example import LR, numbers
from benchmarks.measure import Step
from benchmarks.peers import is_installed, peer
from benchmarks.step import OurStep
from hnetcl.hnets import DirectHyperNetwork
from hnetcl.model import HyperModel
from hnetcl.nets import MLP
from hnetcl.registry import make
from hnetcl.tasks import TaskSequence, load_images, sources, split_sequence
from hnetcl.tasks.batches import Batches
from hnetcl.vision import import_torchvision

PEER, CLASSES, BEFORE = "avalanche", 10, 20  # steps of each old task
METHODS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {  # ours, its keys; Avalanche's strategy, its arguments
    "finetune": ({}, "Naive", {}),
    "ewc": ({"samples": 200}, "EWC", {"ewc_lambda": 100.0}),
    "si": ({}, "SynapticIntelligence", {"si_lambda": 1.0}),
    "replay": ({"size": 4400}, "Replay", {"mem_size": 4400}),
    "lwf": ({}, "LwF", {"alpha": 1.0, "temperature": 2.0}),
}


@dataclass(frozen=True)
class Training:
    """What all contenders do.

    Args:
        hidden: widths of the MLP.
        batch: images in a step.
        data: what Avalanche's data loader reads.
        device: where.
    """

    hidden: tuple[int, ...]
    batch: int
    data: Literal["images", "tensors"]
    device: torch.device

    @cached_property
    def sequence(self) -> TaskSequence:
        """Split MNIST."""
        return replace(split_sequence(lambda name: load_images(name).to(self.device), val_size=0), head="all")

    def batches(self, task: int) -> Batches:
        generator = torch.Generator(self.device).manual_seed(0)
        return Batches(self.sequence[task], self.batch, generator, self.sequence.first_output(task))

    def network(self) -> nn.Sequential:
        """The MLP in torch's own layers."""
        widths = (28 * 28, *self.hidden)
        layers = [layer for i, o in zip(widths, self.hidden, strict=False) for layer in (nn.Linear(i, o), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], CLASSES)).to(self.device)

    def plain(self) -> Step:
        """A loop as one writes it."""
        net, batches = self.network(), self.batches(len(self.sequence) - 1)
        optimizer = torch.optim.Adam(net.parameters(), lr=LR, fused=True)

        def step() -> Tensor:
            x, y = batches.draw()
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    def ours(self, name: str) -> Step:
        """A step as the trainer takes it; the old tasks have had `BEFORE` steps each."""
        net = MLP((1, 28, 28), CLASSES, hidden=self.hidden, norm=None)
        initial = {name: p.detach().clone() for name, p in net.named_parameters()}
        shapes = {name: value.shape for name, value in initial.items()}
        model = HyperModel(net, DirectHyperNetwork(shapes, len(self.sequence), initial, per_task=[])).to(self.device)
        method = make("method", {"name": name, **METHODS[name][0]})
        method.check(model, self.sequence)
        for task in range(len(self.sequence)):
            step = OurStep(model, method, self.sequence, self.batches(task), task)
            if task < len(self.sequence) - 1:
                for _ in range(BEFORE):
                    step()
                method.end_task(step.run)
        return step

    def avalanche(self, name: str) -> Step:
        """A step of a strategy, its data loader's part included; the old tasks have had an epoch each."""
        import_torchvision()  # Avalanche imports it at once
        training = peer("avalanche.training.supervised")
        _, strategy, options = METHODS[name]
        net = self.network()
        optimizer = torch.optim.Adam(net.parameters(), lr=LR, fused=True)
        sizes = {"train_mb_size": self.batch, "train_epochs": 1, "evaluator": None, "device": self.device}
        own = getattr(training, strategy)(model=net, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), **sizes, **options)
        *old, last = self.experiences
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its own functions
            for experience in old:
                own.train(experience)
        own.is_training, own._stop_training, own.experience, own._eval_streams = True, False, last, []
        own.model.train()
        own._before_training()
        own._before_training_exp()
        own._before_training_epoch()
        loader = own.dataloader
        endless: Iterator[Any] = (batch for each in repeat(loader) for batch in each)

        def step() -> Tensor:
            own.dataloader = [next(endless)]
            own.training_epoch()
            loss: Tensor = own.loss.detach()
            return loss

        return step

    @cached_property
    def experiences(self) -> list[Any]:
        """Avalanche's tasks: of the classes 0 and 1, 2 and 3, ..., as ours."""
        if self.data == "images":
            with TemporaryDirectory() as folder:  # the images are in memory then
                unpack_mnist(Path(folder))
                own = {"fixed_class_order": list(range(CLASSES)), "dataset_root": folder}
                return list(peer("avalanche.benchmarks.classic").SplitMNIST(len(self.sequence), **own).train_stream)
        tasks = enumerate(self.sequence.tasks)
        tensors = [(t.preprocess(t.train.images), t.train.labels + self.sequence.first_output(i)) for i, t in tasks]
        own = {"train_tensors": tensors, "test_tensors": tensors, "task_labels": [0] * len(tensors)}
        return list(peer("avalanche.benchmarks").tensors_benchmark(**own).train_stream)


def unpack_mnist(folder: Path) -> None:
    """Writes the packaged MNIST as torchvision keeps it."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in (Path(sources.__file__).parent / "mnist").glob("*.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--hidden", default="400,400", help="widths of the MLP (default %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="images in a step (default %(default)s)")
    parser.add_argument("--data", choices=("images", "tensors"), default="images", help="for Avalanche (default %(default)s)")
    speed.add_arguments(parser)


def field(arguments: Namespace, device: torch.device) -> Field:
    """The plain loop, our methods and Avalanche's.

    Raises:
        ArgumentError: a number is too small.
    """
    inputs.at_least(2, arguments, "batch")
    inputs.at_least(1, arguments, "rounds", "turn")
    training = Training(numbers(arguments, "hidden", 1), arguments.batch, arguments.data, device)
    contenders = [
        Contender("plain", training.plain),
        Contender("ours/finetune/plain", partial(training.ours, "finetune"), "plain"),
    ]
    for name in METHODS:
        theirs = f"{PEER}/{name}"
        base = theirs if is_installed(PEER) else "plain"
        contenders += [
            Contender(theirs, partial(training.avalanche, name)),
            Contender(f"ours/{name}", partial(training.ours, name), base),
        ]
    asked = {"hidden": list(training.hidden), "batch": training.batch, "data": training.data}
    return Field(contenders, asked, partial(speed.speed, rounds=arguments.rounds, turn=arguments.turn, device=device))
