"""The hypernetwork: task embeddings, a generator, and the last step from its raw outputs to named parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hnetcl import registry
from hnetcl.errors import ArgumentError
from hnetcl.hnets.base import BaseHyperNetwork, Record, Shapes, default_values
from hnetcl.hnets.distance import DistanceByFactors
from hnetcl.hnets.generators.generator import Generator, PlainGenerator
from hnetcl.hnets.scaling import MeasuredShapes, typical_embedding, typical_start
from hnetcl.numbers import flat_numbers


class HyperNetwork(BaseHyperNetwork):
    """Generates parameters from a learned task embedding.

        hnet = HyperNetwork(shapes, num_tasks=10, generator="chunked", hidden=[64, 64])

    The generator yields raw outputs r for every parameter. What is generated is

        scale * r             for a parameter that its network draws at random: one scale for each parameter, with which it has,
                              over tasks and before training, the variance of that draw;
        initial + gain * scale * r    for one that its network starts at constants (norm layers, biases), so that it starts
                              there exactly: gain is learned from zero, one for each value (as in ReZero, Bachlechner et al.
                              2021), and scale * r has unit variance before training;
        initial + share * scale * r   for a centered one, so that it starts at `initial` exactly: share is learned from zero,
                              one for each parameter, and with share = 1 the change is as wide as the parameter itself.

    Centered are all other parameters of a pretrained network (`given`), those that the generator names (`trained_centers`, and
    then `initial` is trained as well), and those whose mean is off zero by more than their standard deviation (as the lengths
    of weight normalisation are): no draw around zero would be like them. The aim is that of HyperFan initialisation (Chang et
    al. 2020, Principled weight initialization for hypernetworks), for every layer, and for chunks that cut layers anywhere.
    Fan-in or fan-out is what the network's own draw is.

    Of some embeddings drawn from N(0, I) a task starts at the one whose layers come closest to the variance that they are to
    have: behind a narrow ReLU layer single draws are far from it.

    Args:
        shapes, num_tasks, initial: as for every hypernetwork.
        generator: the name of a registered one; or what makes one, a callable (shapes, num_tasks, **options) -> module that
            maps embeddings [B, E] to raw outputs [B, P], in the order of `shapes`, and says E as `embedding_dim` (see
            `Generator`).
        given: whether every task starts at `initial` exactly.
        options: of the generator.

    Raises:
        ArgumentError: there is no generator of that name, an option is refused, or what the generator yields does not fit.
    """

    start: Tensor
    center: Tensor | None
    scale: Tensor
    level: Tensor

    def __init__(
        self,
        shapes: Shapes,
        num_tasks: int,
        generator: str | Callable[..., nn.Module] = "chunked",
        initial: Mapping[str, Tensor] | None = None,
        given: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(shapes, num_tasks, initial)
        values = default_values(self.shapes) if initial is None else initial
        known = MeasuredShapes(self.shapes, values, given)
        made = _made(generator, known, num_tasks, options)
        flat = {name: flat_numbers(values[name]) for name in made.names}
        self.names, self.note = made.names, made.note
        self.constant = {name: name in known.constant for name in self.names}
        self.centered = [name for name in self.shapes if name in known.centered or name in made.trained_centers]
        still = [name for name in self.centered if name not in made.trained_centers]
        self.register_buffer("start", torch.cat([torch.zeros(0), *(v for n, v in flat.items() if self.constant[n])]))
        self.register_buffer("scale", torch.tensor([known.widths[name] for name in self.names]))
        self.register_buffer("level", torch.ones_like(self.scale))  # of r^2, before training
        self.register_buffer("center", torch.cat([flat[name] for name in still]) if still else None)
        trained = [flat[name] for name in made.trained_centers]
        self.base = nn.Parameter(torch.cat(trained)) if trained else None
        self.gain = nn.Parameter(torch.zeros(len(self.start)))
        self.share = nn.Parameter(torch.zeros(len(self.centered))) if self.centered else None
        begin = typical_start(made.mean_squares, num_tasks, made.embedding_dim, self.varying())
        self.level.copy_(begin.level)
        self.scale /= begin.root_mean_square
        self.embedding = nn.Parameter(begin.embeddings.clone())
        self.generator = made
        self.by_factors = DistanceByFactors(made.chunk_mlps(), list(self.constant.values()))

    @property
    def embeddings(self) -> Tensor:
        return self.embedding

    def task_parameters(self) -> list[nn.Parameter]:
        return [self.embedding]

    def fresh_entries(self) -> dict[str, Tensor]:
        fresh = typical_embedding(self.generator.mean_squares, self.embedding, self.level, self.varying())
        return {"embedding": fresh}

    def varying(self) -> list[int]:
        """Places in `names` of the parameters that start apart for different tasks."""
        return [i for i, name in enumerate(self.names) if not self.constant[name] and name not in self.centered]

    def centers(self) -> dict[str, Tensor]:
        """Where the centered parameters start, by name, flat."""
        trained = self.generator.trained_centers
        found = {} if self.base is None else self._by_name(self.base, trained)
        if self.center is not None:
            found |= self._by_name(self.center, [name for name in self.centered if name not in trained])
        return found

    def shares(self) -> dict[str, Tensor]:
        """Of the centered parameters, by name."""
        return {} if self.share is None else dict(zip(self.centered, self.share.unbind(), strict=True))

    def _by_name(self, values: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The values of some parameters, which lie end to end."""
        return dict(zip(names, values.split([self.shapes[name].numel() for name in names]), strict=True))

    def generate(self, tasks: Tensor) -> dict[str, Tensor]:
        return self.scaled(self.generator.by_parameter(self._embedded(tasks)))

    def scaled(self, outputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """The parameters, by name, of raw outputs [B, n] in the order of `names`; without a graph in the same memory."""
        named = dict(zip(self.names, outputs, strict=True))
        in_place = self.generator.returns_new_tensors and not torch.is_grad_enabled()
        times = Tensor.mul_ if in_place else torch.mul
        sizes = [r.shape[1] for name, r in named.items() if self.constant[name]]
        starts = zip(self.start.split(sizes), self.gain.split(sizes), strict=True)
        centers, shares = self.centers(), self.shares()
        generated = {}
        for (name, r), scale in zip(named.items(), self.scale.unbind(), strict=True):
            own = times(r, scale)
            if self.constant[name]:
                own = torch.addcmul(*next(starts), own)
            elif name in shares:
                own = torch.addcmul(centers[name], shares[name], own)
            generated[name] = own
        return generated

    @torch.no_grad()
    def record(self, tasks: Tensor, at_once: int) -> Record:
        if not self.by_factors.saves(at_once):
            return super().record(tasks, at_once)
        features = self.by_factors.features(self._embedded(tasks))
        return self.by_factors.record(features, self.scale, self.gain, self._share_by_name())

    def squared_distance(self, tasks: Tensor, before: Record) -> Tensor:
        if not before.common:
            return super().squared_distance(tasks, before)
        features = self.by_factors.features(self._embedded(tasks))
        distances: Tensor = self.by_factors(features, self.gain, self._share_by_name(), before)
        return distances

    def with_squared_distance(self, task: Tensor, tasks: Tensor, before: Record) -> tuple[dict[str, Tensor], Tensor]:
        if not before.common:
            return super().with_squared_distance(task, tasks, before)
        features = self.by_factors.features(self._embedded(torch.cat([task.reshape(1), tasks])))
        own, old = zip(*(each.split([1, len(tasks)]) for each in features), strict=True)
        mlps = self.generator.chunk_mlps()
        outputs = [r for mlp, each in zip(mlps, own, strict=True) for r in mlp.outputs(each)]
        params = self.shaped(self.scaled(outputs))
        return params, self.by_factors(old, self.gain, self._share_by_name(), before)

    def _embedded(self, tasks: Tensor) -> Tensor:
        return self.embedding.index_select(0, tasks)

    def _share_by_name(self) -> Tensor | None:
        """One for each of `names`, 1 for those that are not centered; None where none is."""
        if self.share is None:
            return None
        own, one = self.shares(), self.scale.new_ones(())
        return torch.stack([own.get(name, one) for name in self.names])


def make_hypernetwork(
    shapes: Shapes, num_tasks: int, hnet: str | Callable[..., nn.Module] = "chunked", **options: Any
) -> BaseHyperNetwork:
    """A hypernetwork of any kind.

    Args:
        shapes, num_tasks: as for every hypernetwork.
        hnet: the name of a registered kind or generator, a class of hypernetworks, or the generator of a `HyperNetwork`.
        options: of it, `initial` and `given` included.

    Raises:
        ArgumentError: there is no such name, or an argument is refused.
    """
    made = registry.find("hnet", hnet) if isinstance(hnet, str) else hnet
    if isinstance(made, type) and issubclass(made, BaseHyperNetwork):
        if isinstance(hnet, str):
            offered = registry.given("hnet", hnet)
            registry.checked({k: v for k, v in options.items() if k not in offered}, registry.options("hnet", hnet))
        return made(shapes, num_tasks, **options)
    return HyperNetwork(shapes, num_tasks, hnet, **options)


def _made(
    generator: str | Callable[..., nn.Module], shapes: MeasuredShapes, num_tasks: int, options: Mapping[str, Any]
) -> Generator:
    """The generator, whatever the caller says it with."""
    if isinstance(generator, str):
        options = registry.checked(options, registry.options("hnet", generator))
        torch.randn(num_tasks, options.get("embedding_dim", 0))  # for nothing but that a seed gives the weights it always gave
        made = registry.make("hnet", {"name": generator, **options}, shapes=shapes, num_tasks=num_tasks)
    else:
        made = generator(shapes, num_tasks, **options)
    if isinstance(made, BaseHyperNetwork) or not isinstance(made, nn.Module):
        rule = f"makes a {type(made).__name__}; must make a module from embeddings [B, E] to raw outputs [B, P]"
        raise ArgumentError("generator", generator, rule)
    return made if isinstance(made, Generator) else PlainGenerator(made, shapes)
