"""Training steps of the output regularizer beside hypnettorch's, on the networks of its own example.

The step is that of the last of --tasks tasks: a batch is drawn, loss and penalty are computed, Adam steps. All contenders start
with the same weights, and draw the same batches. The penalty of hypnettorch and ours/all is over all old tasks, that of
hypnettorch/1 and ours/1 over one drawn at random; ours/numbers writes all numbers of the old tasks, where ours/all compares by
factors; ours/none has no penalty. Of the compiled ones the step is one graph (trainer.compile=on).
"""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import example, inputs, speed
from benchmarks.contenders import Contender, Field, need_compiler
from benchmarks.example import BETA, LR, PEER, Example
from benchmarks.measure import Step
from benchmarks.peers import is_installed, peer
from benchmarks.step import OurStep
from hnetcl.hnets import BaseHyperNetwork
from hnetcl.methods.output_regularizer import OutputRegularizer


@dataclass(frozen=True)
class Training:
    """What all contenders do.

    Args:
        sizes: of the networks.
        tasks: T; the last one is trained.
        batch: images in a step.
        device: where.
    """

    sizes: Example
    tasks: int
    batch: int
    device: torch.device

    def ours(self, beta: float = BETA, sample: int | None = None, by_numbers: bool = False, compile: str = "off") -> Step:
        """A step as the trainer takes it."""
        if compile == "on":
            need_compiler(self.device)
        model = self.sizes.model(self.tasks, self.device)
        self.sizes.start_alike(model, self.tasks)
        method, batches = OutputRegularizer(beta=beta, sample=sample), example.batches(self.batch, self.device)
        step = OurStep(model, method, example.sequence(batches, self.tasks), batches, compile=compile)
        if by_numbers:
            old = torch.arange(self.tasks - 1, device=self.device)
            method.record = BaseHyperNetwork.record(model.hnet, old, len(old))
        return step

    def hypnettorch(self, sample: int | None = None) -> Step:
        """A step as its documentation and example take it."""
        regularizer = peer("hypnettorch.utils.hnet_regularizer")
        torch.manual_seed(0)
        main, hnet = self.sizes.hypnettorch(self.tasks, self.device)
        batches, task = example.batches(self.batch, self.device), self.tasks - 1
        optimizer = torch.optim.Adam(hnet.parameters(), lr=LR)
        targets = regularizer.get_current_targets(task, hnet)

        def step() -> Tensor:
            x, y = batches.draw()
            loss = F.cross_entropy(main.forward(x.flatten(1), weights=hnet.forward(cond_id=task)), y)
            penalty = BETA * regularizer.calc_fix_target_reg(hnet, task, targets=targets, batch_size=sample)
            optimizer.zero_grad()
            (loss + penalty).backward()
            optimizer.step()
            return loss.detach()

        return step


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--tasks", type=int, default=5, help="of which the last one is trained (default %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images in a step (default %(default)s)")
    example.add_arguments(parser)
    speed.add_arguments(parser)


def field(arguments: Namespace, device: torch.device) -> Field:
    """hypnettorch's steps and ours.

    Raises:
        ArgumentError: a number is too small.
    """
    inputs.at_least(2, arguments, "tasks")
    inputs.at_least(1, arguments, "batch", "rounds", "turn")
    training = Training(example.example(arguments), arguments.tasks, arguments.batch, device)
    base = PEER if is_installed(PEER) else None
    contenders = [
        Contender(PEER, training.hypnettorch),
        Contender("ours/all", training.ours, base),
        Contender("ours/all/compiled", partial(training.ours, compile="on"), base),
        Contender("ours/1", partial(training.ours, sample=1), base),
        Contender("ours/1/compiled", partial(training.ours, sample=1, compile="on"), base),
        Contender("ours/numbers", partial(training.ours, by_numbers=True), base),
        Contender("ours/none", partial(training.ours, beta=0.0), base),
        Contender(f"{PEER}/1", partial(training.hypnettorch, sample=1), base),
    ]
    asked = {"tasks": arguments.tasks, "batch": arguments.batch, **example.settings(training.sizes)}
    return Field(contenders, asked, partial(speed.speed, rounds=arguments.rounds, turn=arguments.turn, device=device))
