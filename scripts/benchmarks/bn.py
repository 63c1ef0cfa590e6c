"""Batch norm, forward and backward, on one input.

Contenders are torch, other libraries' layers, and ours: real/BACKEND, else ALGEBRA/WHITENING/BACKEND, and
ALGEBRA/virtual/BACKEND for virtual batch norm. --only '*/closed_form' '*/compiled' leaves out the slow ones.
"""

import math
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import compare, inputs
from benchmarks.contenders import Absent, Contender, Field, need_compiler
from benchmarks.measure import Step
from benchmarks.peers import peer
from hnetcl.algebra import ALGEBRA_DIMS
from hnetcl.bn import BatchNormLayer, VirtualBatchNormLayer, reference_pass
from hnetcl.kernels.backends import BACKENDS
from hnetcl.kernels.whitening import WHITENINGS

BASE = "torch"
TORCH = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@dataclass(frozen=True)
class Task:
    """What all contenders normalize.

    Args:
        shape: of the real input [N, C, *S]; complex layers get as many bytes as [N, C / 2, *S].
        dtype: of the real input. Layers are in float64 for float64, else in float32.
        device: where.
        training: normalize by the batch's statistics, else by the running ones.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    training: bool

    def step(self, layer: nn.Module, input_is_complex: bool = False) -> Step:
        """Forward and backward by all of the layer's parameters and the input."""
        tensors = self.complex_tensors if input_is_complex else self.tensors
        return inputs.forward_backward(self.prepare(layer), *tensors)

    def prepare(self, layer: nn.Module) -> nn.Module:
        """The layer in the device, dtype and mode of its measurement."""
        layer = layer.to(self.device).train(self.training)
        return layer.double() if self.dtype == torch.float64 else layer

    def batch(self) -> Tensor:
        """At least two samples."""
        return torch.randn(max(2, self.shape[0]), *self.shape[1:], dtype=self.dtype, device=self.device)

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """The input and the output's gradient, the same for all contenders."""
        x = torch.randn(self.shape, dtype=self.dtype, device=self.device)
        return x.requires_grad_(), torch.randn_like(x)

    @cached_property
    def complex_tensors(self) -> tuple[Tensor, Tensor]:
        """The same numbers as complex ones."""
        x, gradient = (torch.complex(*t.detach().chunk(2, 1)) for t in self.tensors)
        return x.requires_grad_(), gradient

    def check(self, algebra: str) -> None:
        """Raises ArgumentError where the channels are no whole numbers of the algebra."""
        inputs.check_width(algebra, self.shape[1], "shape", ",".join(map(str, self.shape)))


def add_arguments(parser: ArgumentParser) -> None:
    inputs.add_arguments(parser, "64,64,32,32", "N,C and up to three more")
    compare.add_arguments(parser)


def field(arguments: Namespace, device: torch.device) -> Field:
    """torch's layer, ours of every algebra, whitening and backend, and other libraries'.

    Raises:
        ArgumentError: no such dtype, or batch norm can't take the shape.
    """
    inputs.at_least(1, arguments, "rounds")
    shape = inputs.shape(arguments.shape, 2, 5, "64,64,32,32")
    inputs.check_values(shape, not arguments.eval, arguments.shape)
    task = Task(shape, inputs.dtype(arguments), device, not arguments.eval)
    contenders = [
        Contender(BASE, lambda: task.step(TORCH[len(task.shape)](task.shape[1]))),
        *(_ours(task, *variant) for variant in _variants()),
        *(_virtual(task, algebra) for algebra in ALGEBRA_DIMS),
        _real_peer(task),
        _complex_peer(task, "complextorch", "complextorch.nn", "BatchNorm"),
        _complex_peer(task, "complexPyTorch", "complexPyTorch.complexLayers", "ComplexBatchNorm"),
    ]
    unit_bytes = math.prod(shape) * task.dtype.itemsize
    measure = partial(compare.compare, unit_bytes=unit_bytes, rounds=arguments.rounds, device=device, base_name=BASE)
    return Field(contenders, inputs.settings(arguments, shape), measure)


def _variants() -> list[tuple[str, str, str]]:
    """Algebra, whitening and backend. For d = 1 all whitenings are one, and torch's own kernel is never compiled."""
    backends = [backend for backend in BACKENDS if backend != "auto"]
    real = [("real", WHITENINGS[0], backend) for backend in backends if backend != "compiled"]
    return real + list(product([name for name in ALGEBRA_DIMS if name != "real"], WHITENINGS, backends))


def _ours(task: Task, algebra: Any, whitening: Any, backend: Any) -> Contender:
    def build() -> Step:
        if backend == "compiled":
            need_compiler(task.device)
        return task.step(BatchNormLayer(task.shape[1], algebra=algebra, whitening=whitening, backend=backend))

    name = "/".join([algebra, *([whitening] if algebra != "real" else []), backend])
    return Contender(name, build, BASE, partial(task.check, algebra))


def _virtual(task: Task, algebra: Any) -> Contender:
    """Its reference is of a batch that is as large as the input, and known before anything is measured."""

    def build() -> Step:
        layer = task.prepare(VirtualBatchNormLayer(task.shape[1], algebra=algebra, backend="closed_form"))
        with torch.no_grad(), reference_pass(layer):
            layer(task.batch())
        return task.step(layer)

    return Contender(f"{algebra}/virtual/closed_form", build, BASE, partial(task.check, algebra))


def _real_peer(task: Task) -> Contender:
    def build() -> Step:
        return task.step(peer("hypnettorch.utils.batchnorm_layer").BatchNormLayer(task.shape[1]))

    return Contender("hypnettorch", build, BASE)


def _complex_peer(task: Task, name: str, module: str, prefix: str) -> Contender:
    """A layer for complex input, named by its number of axes."""

    def build() -> Step:
        axes = {2: "1d", 3: "1d", 4: "2d", 5: "3d"}[len(task.shape)]
        layers = peer(module)
        if task.dtype not in (torch.float32, torch.float64):
            raise Absent("no complex numbers of half precision")
        if name == "complexPyTorch" and (task.dtype != torch.float32 or len(task.shape) not in (2, 4)):
            raise Absent("float32 with 2 or 4 axes only")
        if name == "complextorch" and task.shape[1] == 2 and task.training:
            raise Absent("fails with one complex channel")
        return task.step(getattr(layers, prefix + axes)(task.shape[1] // 2), input_is_complex=True)

    return Contender(name, build, BASE, partial(task.check, "complex"))
