"""Batch norm, forward and backward, on one input."""

import math
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from types import ModuleType

import torch
from torch import Tensor, nn

from hnetcl.algebra import as_algebra
from hnetcl.benchmark.compare import Absent, Contender, Field
from hnetcl.benchmark.measure import Step
from hnetcl.bn import BatchNormLayer
from hnetcl.choices import ALGEBRA_DIMS, BACKENDS, WHITENINGS
from hnetcl.errors import ArgumentError, one_of
from hnetcl.kernels.compiled import can_compile

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
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
        layer = layer.to(self.device).train(self.training)
        if self.dtype == torch.float64:
            layer = layer.double()
        x, gradient = self.complex_tensors if input_is_complex else self.tensors
        leaves = [x, *layer.parameters()]

        def step() -> tuple[Tensor, ...]:
            return torch.autograd.grad(layer(x), leaves, gradient)

        return step

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
        try:
            as_algebra(algebra).numbers(self.shape[1])
        except ArgumentError as error:
            text = ",".join(map(str, self.shape))
            raise ArgumentError("shape", text, f"the channels {error.allowed}; --only leaves contenders out") from error


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--shape", default="64,64,32,32", help="of the input: N,C and up to three more (default %(default)s)")
    parser.add_argument("--dtype", default="float32", help=f"of the input: {', '.join(DTYPES)} (default %(default)s)")
    parser.add_argument("--eval", action="store_true", help="normalize by running statistics, not by the batch's")


def field(arguments: Namespace, device: torch.device) -> Field:
    """torch's layer, ours of every algebra, whitening and backend, and other libraries'.

    Raises:
        ArgumentError: no such dtype, or batch norm can't take the shape.
    """
    if arguments.dtype not in DTYPES:
        raise one_of("dtype", arguments.dtype, DTYPES)
    task = Task(_shape(arguments.shape, not arguments.eval), DTYPES[arguments.dtype], device, not arguments.eval)
    contenders = [
        Contender("torch", lambda: task.step(TORCH[len(task.shape)](task.shape[1]))),
        *(_ours(task, *variant) for variant in _variants()),
        _real_peer(task),
        _complex_peer(task, "complextorch", "complextorch.nn", "BatchNorm"),
        _complex_peer(task, "complexPyTorch", "complexPyTorch.complexLayers", "ComplexBatchNorm"),
    ]
    settings = {"shape": list(task.shape), "dtype": arguments.dtype, "mode": "training" if task.training else "evaluation"}
    return Field(contenders, math.prod(task.shape) * task.dtype.itemsize, settings)


def _shape(text: str, training: bool) -> tuple[int, ...]:
    parts = text.split(",")
    if not 2 <= len(parts) <= 5 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ArgumentError("shape", text, "must be 2 to 5 positive whole numbers, as in 64,64,32,32")
    shape = tuple(int(part) for part in parts)
    if training and math.prod(shape) == shape[1]:
        raise ArgumentError("shape", text, "batch statistics need more than one value per channel (with --eval one will do)")
    return shape


def _variants() -> list[tuple[str, str, str]]:
    """Algebra, whitening and backend. For d = 1 all whitenings are one, and torch's own kernel is never compiled."""
    backends = [backend for backend in BACKENDS if backend != "auto"]
    real = [("real", WHITENINGS[0], backend) for backend in backends if backend != "compiled"]
    return real + list(product([name for name in ALGEBRA_DIMS if name != "real"], WHITENINGS, backends))


def _ours(task: Task, algebra: str, whitening: str, backend: str) -> Contender:
    def build() -> Step:
        task.check(algebra)
        if backend == "compiled" and not can_compile(task.device):
            raise Absent("torch.compile does not work here")
        return task.step(BatchNormLayer(task.shape[1], algebra, whitening=whitening, backend=backend))

    return Contender("/".join([algebra, *([whitening] if algebra != "real" else []), backend]), build)


def _real_peer(task: Task) -> Contender:
    def build() -> Step:
        return task.step(_peer("hypnettorch.utils.batchnorm_layer").BatchNormLayer(task.shape[1]))

    return Contender("hypnettorch", build)


def _complex_peer(task: Task, name: str, module: str, prefix: str) -> Contender:
    """A layer for complex input, named by its number of axes."""

    def build() -> Step:
        axes = {2: "1d", 3: "1d", 4: "2d", 5: "3d"}[len(task.shape)]
        layers = _peer(module)
        task.check("complex")
        if task.dtype not in (torch.float32, torch.float64):
            raise Absent("no complex numbers of half precision")
        if name == "complexPyTorch" and (task.dtype != torch.float32 or len(task.shape) not in (2, 4)):
            raise Absent("float32 with 2 or 4 axes only")
        if name == "complextorch" and task.shape[1] == 2 and task.training:
            raise Absent("fails with one complex channel")
        return task.step(getattr(layers, prefix + axes)(task.shape[1] // 2), input_is_complex=True)

    return Contender(name, build)


def _peer(module: str) -> ModuleType:
    if find_spec(module.partition(".")[0]) is None:
        raise Absent("not installed")
    return import_module(module)
