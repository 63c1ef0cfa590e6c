"""From real channels to numbers, and back."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from hnetcl.algebra import Algebra, as_algebra
from hnetcl.errors import ArgumentError, one_of
from hnetcl.kernels.layout import complex_to_real
from hnetcl.layers.sizes import per_axis

Imaginary = Literal["zero", "copied", "learned"]
Readout = Literal["real", "modulus", "components"]


class ToNumbers(nn.Module):
    """Real channels as the real parts of numbers: [N, C, *S] -> [N, d C, *S], component-major.

    Args:
        in_channels: C.
        algebra: of the numbers.
        imaginary: the imaginary parts. "zero"; "copied": x once more in each; "learned": batch norm, ReLU, 3 x 3 convolution,
            and that again, for images (Trabelsi et al. 2018, arXiv:1705.09792, section 3.7). Real numbers have none.
        norm: of "learned": width -> real batch norm; torch's where left out.

    With d = 2 and imaginary parts that are not learned x may be complex [N, C, *S]: then it has its own, and is only viewed.

    A layer of numbers behind zero imaginary parts computes what a real layer with d times its weights would: that is cheaper.

    Raises:
        ArgumentError: C is not positive, an option is outside its set, or `norm` would not be used.
    """

    def __init__(
        self,
        in_channels: int,
        algebra: str | Algebra,
        imaginary: Imaginary = "zero",
        *,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        per_axis("in_channels", in_channels, 1)
        self.in_channels, self.algebra, self.imaginary = in_channels, as_algebra(algebra), imaginary
        if imaginary not in get_args(Imaginary):
            raise one_of("imaginary", imaginary, get_args(Imaginary))
        if norm is not None and imaginary != "learned":
            raise ArgumentError("norm", norm, "is used where imaginary=learned")
        self.block: nn.Sequential | None = None
        if imaginary == "learned" and self.algebra.dim > 1:
            width = (self.algebra.dim - 1) * in_channels
            layers: list[nn.Module] = []
            for before in (in_channels, width):
                conv = nn.Conv2d(before, width, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(conv.weight)
                layers += [nn.BatchNorm2d(before) if norm is None else norm(before), nn.ReLU(), conv]
            self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, *S] -> [N, d C, *S].

        Raises:
            ValueError: x has other channels, or is complex where d is not 2.
        """
        if self.block is not None:  # asks nothing of x, so that the block can be traced
            return torch.cat([x, self.block(x)], 1)
        if x.shape[1] != self.in_channels:
            raise ValueError(f"expected x of shape [N, {self.in_channels}, ...], got {tuple(x.shape)}")
        if x.is_complex():
            if self.algebra.dim != 2:
                raise ValueError(f"complex x is taken where algebra=complex, not {self.algebra.name}")
            return complex_to_real(x)
        return torch.cat([x] * self.algebra.dim, 1) if self.imaginary == "copied" else self.algebra.lift(x)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, algebra={self.algebra.name}, imaginary={self.imaginary}"


class ToReal(nn.Module):
    """What real layers see of numbers [N, C, *S].

    Args:
        algebra: of the numbers.
        what: "real", the real parts [N, C / d, *S]; "modulus", |z| [N, C / d, *S], whose derivative at 0 is 0; "components",
            all of them as real channels: x itself.

    Raises:
        ArgumentError: `what` is none of these.
    """

    def __init__(self, algebra: str | Algebra, what: Readout = "real") -> None:
        super().__init__()
        self.algebra, self.what = as_algebra(algebra), what
        if what not in get_args(Readout):
            raise one_of("what", what, get_args(Readout))

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "components":
            return x
        return self.algebra.modulus(x) if self.what == "modulus" else x.unflatten(1, (self.algebra.dim, -1))[:, 0]

    def extra_repr(self) -> str:
        return f"algebra={self.algebra.name}, what={self.what}"
