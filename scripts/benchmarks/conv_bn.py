"""A convolution and its batch norm, forward and backward: fused against one after the other.

Contenders are ALGEBRA/pair/BACKEND and ALGEBRA/fused/BACKEND; the ratios of a fused one are to its pair, whose name differs in
nothing else. Real numbers have torch's own kernel, which is never compiled.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import compare, inputs
from benchmarks.contenders import Contender, Field, need_compiler
from benchmarks.measure import Step
from hnetcl.algebra import ALGEBRA_DIMS
from hnetcl.bn import BatchNormLayer, ConvBatchNorm
from hnetcl.errors import ArgumentError
from hnetcl.layers import Conv2d


@dataclass(frozen=True)
class Task:
    """What all contenders compute.

    Args:
        shape: of the input [N, in, H, W].
        channels: out.
        kernel: side of the square kernel.
        padding: zeros on each side.
        dtype: of the input and the convolution's weight. Batch norm is in float64 for float64, else in float32.
        device: where.
        training: normalize by the batch's statistics, else by the running ones.
    """

    shape: tuple[int, ...]
    channels: int
    kernel: int
    padding: int
    dtype: torch.dtype
    device: torch.device
    training: bool

    @property
    def out_shape(self) -> tuple[int, ...]:
        """[N, out, H', W'], of what is normalized."""
        height, width = (side + 2 * self.padding - self.kernel + 1 for side in self.shape[2:])
        return self.shape[0], self.channels, height, width

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """The input and the output's gradient, the same for all contenders."""
        x, gradient = (torch.randn(shape, dtype=self.dtype, device=self.device) for shape in (self.shape, self.out_shape))
        return x.requires_grad_(), gradient

    def step(self, algebra: Any, is_fused: bool, backend: Any) -> Step:
        """Forward and backward by all parameters and the input."""
        if backend == "compiled":
            need_compiler(self.device)
        conv = Conv2d(self.shape[1], self.channels, self.kernel, algebra, bias=False, padding=self.padding).to(self.dtype)
        norm = BatchNormLayer(self.channels, algebra=algebra, backend=backend)
        if self.dtype == torch.float64:
            norm.double()
        layer = ConvBatchNorm(conv, norm) if is_fused else nn.Sequential(conv, norm)
        return inputs.forward_backward(layer.to(self.device).train(self.training), *self.tensors)

    def check(self, algebra: str) -> None:
        """Raises ArgumentError where the channels are no whole numbers of the algebra."""
        inputs.check_width(algebra, self.shape[1], "shape", ",".join(map(str, self.shape)))
        inputs.check_width(algebra, self.channels, "channels", self.channels)


def add_arguments(parser: ArgumentParser) -> None:
    inputs.add_arguments(parser, "32,64,32,32", "N,C,H,W")
    parser.add_argument("--channels", type=int, default=64, help="of the output (default %(default)s)")
    parser.add_argument("--kernel", type=int, default=3, help="side of the square kernel (default %(default)s)")
    parser.add_argument("--padding", type=int, default=1, help="zeros on each side (default %(default)s)")
    compare.add_arguments(parser)


def field(arguments: Namespace, device: torch.device) -> Field:
    """Every algebra, pair or fused, and backend.

    Raises:
        ArgumentError: no such dtype, or the convolution or batch norm can't take the shape.
    """
    shape = inputs.shape(arguments.shape, 4, 4, "32,64,32,32")
    inputs.at_least(1, arguments, "rounds", "channels", "kernel")
    inputs.at_least(0, arguments, "padding")
    geometry = arguments.channels, arguments.kernel, arguments.padding
    task = Task(shape, *geometry, inputs.dtype(arguments), device, not arguments.eval)
    if min(task.out_shape) < 1:
        raise ArgumentError(
            "kernel", arguments.kernel, f"must be at most {min(shape[2:]) + 2 * arguments.padding}, the padded side"
        )
    inputs.check_values(task.out_shape, task.training, arguments.shape)

    asked = inputs.settings(arguments, shape)
    asked |= {name: getattr(arguments, name) for name in ("channels", "kernel", "padding")}
    measure = partial(
        compare.compare, unit_bytes=asked["input_bytes"], rounds=arguments.rounds, device=device, base_name="pair"
    )
    return Field([_contender(task, *variant) for variant in _variants()], asked, measure)


def _variants() -> list[tuple[str, str, str]]:
    """Algebra, backend, and pair or fused."""
    kinds = product(ALGEBRA_DIMS, ("closed_form", "compiled"), ("pair", "fused"))
    return [kind for kind in kinds if kind[:2] != ("real", "compiled")]


def _contender(task: Task, algebra: str, backend: str, kind: str) -> Contender:
    build = partial(task.step, algebra, kind == "fused", backend)
    return Contender(f"{algebra}/{kind}/{backend}", build, f"{algebra}/pair/{backend}", partial(task.check, algebra))
