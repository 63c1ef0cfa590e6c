"""Convolutions of numbers, forward and backward, beside torch's real convolution of the same widths and other libraries'.

All contenders map the same real channels to as many. A convolution of numbers of d components has 1 / d of the weights of
torch's real one, and does as many multiplications. Ratios are to torch.
"""

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import compare, inputs
from benchmarks.contenders import Absent, Contender, Field
from benchmarks.measure import Step
from benchmarks.peers import peer
from hnetcl.algebra import ALGEBRA_DIMS, as_algebra
from hnetcl.errors import ArgumentError
from hnetcl.kernels.layout import real_to_complex
from hnetcl.layers import Conv2d

BASE = "torch"


@dataclass(frozen=True)
class Task:
    """What all contenders compute, without bias and with stride 1.

    Args:
        shape: of the real input [N, in, H, W]; layers of complex tensors get as many bytes as [N, in / 2, H, W].
        channels: out.
        kernel: side of the square kernel, odd, so that the output is as large as the input.
        groups: of channels (torch) or numbers that see each other.
        dtype: of input and weight.
        device: where.
    """

    shape: tuple[int, ...]
    channels: int
    kernel: int
    groups: int
    dtype: torch.dtype
    device: torch.device

    @property
    def options(self) -> dict[str, Any]:
        """Those that all layers have."""
        return {"kernel_size": self.kernel, "padding": self.kernel // 2, "groups": self.groups, "bias": False}

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """The input and the output's gradient, the same for all contenders."""
        shapes = self.shape, (self.shape[0], self.channels, *self.shape[2:])
        x, gradient = (torch.randn(shape, dtype=self.dtype, device=self.device) for shape in shapes)
        return x, gradient

    def step(self, layer: nn.Module, view: Callable[[Tensor], Tensor] = lambda x: x) -> Step:
        """Forward and backward by the weight and the input.

        Args:
            layer: of the task's device; its dtype is left as it is.
            view: how the layer takes its input and gives its output.
        """
        x, gradient = (view(tensor).contiguous() for tensor in self.tensors)
        return inputs.forward_backward(layer.to(self.device), x.requires_grad_(), gradient)

    def check(self, algebra: str) -> None:
        """Raises ArgumentError where the channels are no whole numbers of the algebra, or do not make whole groups."""
        inputs.check_width(algebra, self.shape[1], "shape", ",".join(map(str, self.shape)))
        inputs.check_width(algebra, self.channels, "channels", self.channels)
        d = as_algebra(algebra).dim
        if self.shape[1] // d % self.groups or self.channels // d % self.groups:
            raise ArgumentError("groups", self.groups, f"must divide the {algebra} numbers; --only leaves contenders out")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--shape", default="32,64,32,32", help="of the input: N,C,H,W (default %(default)s)")
    parser.add_argument("--dtype", default="float32", help=f"of the input: {', '.join(inputs.DTYPES)} (default %(default)s)")
    parser.add_argument("--channels", type=int, default=64, help="of the output (default %(default)s)")
    parser.add_argument("--kernel", type=int, default=3, help="side of the square kernel, odd (default %(default)s)")
    parser.add_argument(
        "--groups", type=int, default=1, help="of channels or numbers that see each other (default %(default)s)"
    )
    compare.add_arguments(parser)


def field(arguments: Namespace, device: torch.device) -> Field:
    """torch, every algebra, and other libraries' layers.

    Raises:
        ArgumentError: no such dtype, or a shape or kernel that can't be.
    """
    shape = inputs.shape(arguments.shape, 4, 4, "32,64,32,32")
    inputs.at_least(1, arguments, "rounds", "channels", "kernel", "groups")
    if arguments.kernel % 2 == 0:
        raise ArgumentError("kernel", arguments.kernel, "must be odd")
    task = Task(shape, arguments.channels, arguments.kernel, arguments.groups, inputs.dtype(arguments), device)
    widths = shape[1], task.channels
    contenders = [
        Contender(
            BASE, lambda: task.step(nn.Conv2d(*widths, **task.options, dtype=task.dtype)), check=partial(task.check, "real")
        ),
        *(_ours(task, algebra) for algebra in ALGEBRA_DIMS),
        _complex_peer(task, "complextorch", "complextorch.nn", "Conv2d"),
        _complex_peer(task, "complexPyTorch", "complexPyTorch.complexLayers", "ComplexConv2d"),
        _speechbrain(task, "complex", "complex_networks.c_CNN", "CConv2d"),
        _speechbrain(task, "quaternion", "quaternion_networks.q_CNN", "QConv2d"),
    ]
    unit_bytes = math.prod(shape) * task.dtype.itemsize
    asked = {"shape": list(shape), "dtype": arguments.dtype, "input_bytes": unit_bytes}
    asked |= {name: getattr(arguments, name) for name in ("channels", "kernel", "groups")}
    measure = partial(compare.compare, unit_bytes=unit_bytes, rounds=arguments.rounds, device=device, base_name=BASE)
    return Field(contenders, asked, measure)


def _ours(task: Task, algebra: str) -> Contender:
    def build() -> Step:
        return task.step(Conv2d(task.shape[1], task.channels, algebra=algebra, **task.options).to(task.dtype))

    return Contender(algebra, build, BASE, partial(task.check, algebra))


def _complex_peer(task: Task, name: str, module: str, layer: str) -> Contender:
    """A layer of complex tensors."""

    def build() -> Step:
        make = getattr(peer(module), layer)
        if task.dtype != torch.float32:
            raise Absent("float32 only")
        return task.step(make(task.shape[1] // 2, task.channels // 2, **task.options), real_to_complex)

    return Contender(name, build, BASE, partial(task.check, "complex"))


def _speechbrain(task: Task, algebra: str, module: str, layer: str) -> Contender:
    """Component-major, too, with the channels in the last axis."""

    def build() -> Step:
        make = getattr(peer(f"speechbrain.nnet.{module}"), layer)
        if task.groups > 1:
            raise Absent("its groups are of channels, so that components of one number are in several")
        shape = task.shape[0], task.shape[3], task.shape[2], task.shape[1]
        made = make(
            out_channels=task.channels // as_algebra(algebra).dim,
            kernel_size=(task.kernel, task.kernel),
            input_shape=shape,
            padding_mode="constant",
            bias=False,
        )
        return task.step(made.to(task.dtype), lambda x: x.transpose(1, -1))

    return Contender(f"speechbrain/{algebra}", build, BASE, partial(task.check, algebra))
