"""Activations that see a number as a whole. By component, any elementwise activation of torch serves as it is."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from hnetcl.algebra import Algebra, as_algebra
from hnetcl.errors import ArgumentError
from hnetcl.kernels.layout import sum_dtype


class NumberActivation(nn.Module):
    """f of every number of x [N, C, *S], component-major; half precision is computed in float32.

    Raises:
        ArgumentError: f is not defined in that algebra.
    """

    defined: ClassVar[tuple[int, ...]] = (1, 2, 4)  # for numbers of so many components
    width = -1  # Q, where it is fixed: other inputs are refused, where a single number would be broadcast

    def __init__(self, algebra: str | Algebra) -> None:
        super().__init__()
        self.algebra = as_algebra(algebra)
        if self.algebra.dim not in self.defined:
            raise ArgumentError("algebra", self.algebra.name, f"{type(self).__name__} is defined for complex numbers only")

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x.to(sum_dtype(x.dtype)).unflatten(1, (self.algebra.dim, self.width))).flatten(1, 2).to(x.dtype)

    def act(self, z: Tensor) -> Tensor:
        """f of numbers [N, d, Q, *S]."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"algebra={self.algebra.name}"


class ModReLU(NumberActivation):
    r"""A threshold on the modulus that keeps the direction, with a bias learned for every number.

    .. math:: f(z) = \mathrm{ReLU}(|z| + b) \frac{z}{|z|}

    The bias [Q] starts at zero, where f(z) = z. For real numbers b < 0 is soft thresholding. f(0) = 0, and the derivative there
    is that of z where b >= 0, else zero.

    Args:
        num_features: C, a multiple of d.
        algebra: of the numbers.

    Raises:
        ArgumentError: C is not a positive multiple of d.

    Source: Arjovsky, Shah & Bengio 2016, arXiv:1511.06464.
    """

    def __init__(self, num_features: int, algebra: str | Algebra) -> None:
        super().__init__(algebra)
        self.num_features = num_features
        self.width = self.algebra.numbers(num_features, "num_features")
        self.bias = nn.Parameter(torch.zeros(self.width))

    def act(self, z: Tensor) -> Tensor:
        modulus, is_zero = _modulus(z)
        bias = self.bias.to(z.dtype).reshape(-1, *[1] * (z.ndim - 3))
        return z * torch.where(is_zero, (bias >= 0).to(z.dtype), (1 + bias / modulus).relu())

    def extra_repr(self) -> str:
        return f"{self.num_features}, {super().extra_repr()}"


class ZReLU(NumberActivation):
    """z where its phase is in [0, pi / 2], that is where neither component is negative; else 0. Complex only.

    Source: Guberman 2016, arXiv:1602.09046; Trabelsi et al. 2018, arXiv:1705.09792, section 3.4.
    """

    defined = (2,)

    def act(self, z: Tensor) -> Tensor:
        return z * (z >= 0).all(1, keepdim=True)


class Cardioid(NumberActivation):
    r"""A number scaled by its angle to the positive real axis: ReLU, for real numbers.

    .. math:: f(z) = \frac{1}{2} \left(1 + \frac{\mathrm{Re}\, z}{|z|}\right) z

    f(0) = 0, with the derivative of z / 2. For quaternions the same formula, which sees the real axis and nothing else.

    Source: Virtue, Yu & Lustig 2017, arXiv:1707.00070.
    """

    def act(self, z: Tensor) -> Tensor:
        modulus, is_zero = _modulus(z)
        return z * (1 + (z[:, :1] / modulus).masked_fill(is_zero, 0)) / 2


class Tanh(NumberActivation):
    r"""The hyperbolic tangent of a number, not of its components.

    .. math:: \tanh(a + u b) = \frac{\tanh a + u \, \mathrm{sech}^2 a \, \sin b \cos b}{\cos^2 b + \tanh^2 a \sin^2 b}

    for z = a + u b with real a, b and a unit u of imaginary parts alone. For quaternions this is what the power series of tanh
    gives, which stays in the plane of 1 and u. It has poles at a = 0, b = pi / 2 + k pi: keep numbers small.
    """

    def act(self, z: Tensor) -> Tensor:
        a, v = z[:, :1], z[:, 1:]  # v = u b
        t, sech2 = a.tanh(), 4 * (2 * a).sigmoid() * (-2 * a).sigmoid()
        square = v.square().sum(1, keepdim=True)
        small = square < torch.finfo(z.dtype).eps ** (1 / 3)  # there b^6 is nothing, and b has no derivative at 0
        b = square.masked_fill(small, 1).sqrt()
        cos2 = torch.where(small, 1 - square + square.square() / 3, b.cos().square())
        sinc = torch.where(small, 1 - 2 / 3 * square + 2 / 15 * square.square(), (2 * b).sin() / (2 * b))
        return torch.cat([t, v * sech2 * sinc], 1) / (cos2 + t.square() * (1 - cos2))


def _modulus(z: Tensor) -> tuple[Tensor, Tensor]:
    """|z| [N, 1, Q, *S], 1 where it is so small that derivatives would overflow, and where that is."""
    square = z.square().sum(1, keepdim=True)
    is_zero = square <= torch.finfo(z.dtype).tiny ** 0.75
    return square.masked_fill(is_zero, 1).sqrt(), is_zero
