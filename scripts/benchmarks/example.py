"""The networks of hypnettorch's own example, ours and theirs: an MLP under a chunked hypernetwork."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from benchmarks import inputs
from benchmarks.peers import copy_hypnettorch, is_installed, peer
from hnetcl.errors import ArgumentError
from hnetcl.hnets import HyperNetwork
from hnetcl.model import HyperModel
from hnetcl.nets import MLP
from hnetcl.tasks import Split, Task, TaskSequence
from hnetcl.tasks.batches import Batches
from hnetcl.tasks.preprocess import Preprocess

SIDE, CLASSES, IMAGES = 28, 10, 6000
PEER = "hypnettorch"
LR, BETA = 1e-3, 0.01


@dataclass(frozen=True)
class Example:
    """Sizes of both networks.

    Args:
        hidden: widths of the main network's hidden layers.
        trunk: widths of the hypernetwork's hidden layers.
        chunk_size: numbers in a chunk.
        embedding_dim: of the embeddings of tasks, and of those of chunks.
    """

    hidden: tuple[int, ...]
    trunk: tuple[int, ...]
    chunk_size: int
    embedding_dim: int

    def model(self, tasks: int, device: torch.device, norm: Callable[[int], nn.Module] | None = None) -> HyperModel:
        """Ours; what the main network starts with is random in all parameters, so that weights can be copied."""
        net = MLP((1, SIDE, SIDE), CLASSES, hidden=self.hidden, norm=norm)
        initial = {name: torch.randn(p.shape) for name, p in net.named_parameters()}
        shapes = {name: value.shape for name, value in initial.items()}
        widths = {"embedding_dim": self.embedding_dim, "chunk_embedding_dim": self.embedding_dim, "chunk_size": self.chunk_size}
        hnet = HyperNetwork(shapes, tasks, "chunked", initial, False, hidden=self.trunk, **widths)
        return HyperModel(net, hnet).to(device)

    def hypnettorch(self, tasks: int, device: torch.device) -> tuple[Any, Any]:
        """Their main network, which has no weights of its own, and their hypernetwork; Absent where they are not installed."""
        mlp, chunked = peer("hypnettorch.mnets").MLP, peer("hypnettorch.hnets").ChunkedHMLP
        main = mlp(n_in=SIDE**2, n_out=CLASSES, hidden_layers=list(self.hidden), no_weights=True, verbose=False)
        hnet = chunked(
            main.param_shapes,
            self.chunk_size,
            chunk_emb_size=self.embedding_dim,
            layers=self.trunk,
            cond_in_size=self.embedding_dim,
            num_cond_embs=tasks,
            verbose=False,
        )
        return main.to(device), hnet.to(device)

    def start_alike(self, model: HyperModel, tasks: int) -> None:
        """Gives our model the weights that theirs draws with seed 0, where it is installed, so that both compute the same."""
        if not is_installed(PEER):
            return
        torch.manual_seed(0)
        _, theirs = self.hypnettorch(tasks, next(model.parameters()).device)
        assert isinstance(model.hnet, HyperNetwork)
        copy_hypnettorch(model.hnet, theirs)


def batches(size: int, device: torch.device) -> Batches:
    """Random images with random labels, drawn on the device as the trainer draws them; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8).to(device)
    split = Split(images, torch.randint(CLASSES, (IMAGES,), generator=generator).to(device))
    centre, spread = (torch.full((1, 1, 1), value, device=device) for value in (0.5, 0.29))
    task = Task(tuple(map(str, range(CLASSES))), split, split, split, Preprocess(centre, spread))
    return Batches(task, size, torch.Generator(device).manual_seed(0))


def sequence(batches: Batches, tasks: int) -> TaskSequence:
    """That many tasks of the same images."""
    return TaskSequence("random", (batches.task,) * tasks)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--hidden", default="100,100", help="widths of the main network (default %(default)s)")
    parser.add_argument("--trunk", default="100,100", help="hidden widths of the hypernetwork (default %(default)s)")
    parser.add_argument("--chunk-size", type=int, default=750, help="numbers in a chunk (default %(default)s)")
    parser.add_argument("--embedding-dim", type=int, default=8, help="of tasks and of chunks (default %(default)s)")


def example(arguments: Namespace) -> Example:
    """The sizes that the user asks for.

    Raises:
        ArgumentError: a size below 1.
    """
    inputs.at_least(1, arguments, "chunk_size", "embedding_dim")
    widths = numbers(arguments, "hidden", 1), numbers(arguments, "trunk", 1)
    return Example(*widths, arguments.chunk_size, arguments.embedding_dim)


def settings(sizes: Example) -> dict[str, Any]:
    """For the record."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(sizes).items()}


def numbers(arguments: Namespace, name: str, least: int) -> tuple[int, ...]:
    """An argument such as 10,100 as numbers.

    Raises:
        ArgumentError: these are not whole numbers, or one is below `least`.
    """
    text = getattr(arguments, name)
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise ArgumentError(name, text, f"must be whole numbers of at least {least}, as in 10,100")
    return tuple(int(part) for part in parts)
