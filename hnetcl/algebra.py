"""Numbers of d real components: what they are, how they multiply, how real tensors carry them.

A tensor of Q numbers keeps C = d * Q real channels, *component-major*: all real parts, then all i parts, then j, then k.
So a layer of any algebra is an ordinary real layer whose weight is the block matrix of the algebra's product.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hnetcl.errors import ArgumentError, one_of

AlgebraName = Literal["real", "complex", "quaternion"]


@dataclass(frozen=True)
class Algebra:
    """A real algebra with basis e_0 = 1, e_1, ..., e_{d-1}.

    Args:
        name: how users call it.
        dim: d, the number of real components of a number.
        table: `table[a][b] = (sign, c)` where e_a e_b = sign * e_c.
    """

    name: str
    dim: int
    table: tuple[tuple[tuple[int, int], ...], ...]

    def numbers(self, channels: int, name: str = "channels") -> int:
        """Q, the numbers in `channels` real channels.

        Raises:
            ArgumentError: `channels` is not a positive multiple of d.
        """
        if channels < 1 or channels % self.dim:
            raise ArgumentError(name, channels, f"must be a positive multiple of {self.dim} ({self.name})")
        return channels // self.dim

    def block_matrix(self, weight: Tensor, channels_last: bool = False, groups: int = 1) -> Tensor:
        """The real weight that multiplies by `weight` from the left.

        With y_c = sum over a, b with e_a e_b = s e_c of s w_a x_b, block (c, b) of the matrix is s w_a.

        Args:
            weight: [d, out / d, in / d, *K], the components of a linear (K empty) or a convolution's weight; with groups
                [d, out / d, in / (d groups), *K].
            channels_last: whether the inputs of one place of K shall lie next to each other in memory.
            groups: of numbers that see each other. The matrix is for channels ordered by group, then by component, then by
                number, so that each group lies in one piece, as torch has it; `group_major` orders them so.

        Returns:
            [out, in / groups, *K]
        """
        if self.dim == 1:
            real = weight.squeeze(0)  # whose backward, unlike that of weight[0], copies nothing
            return real.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else real
        parts = weight if groups == 1 else weight.unflatten(1, (groups, -1))
        rows_at, columns_at = (0, 1) if groups == 1 else (1, 2)  # of a component [out / d, in / d, *K]
        if channels_last:
            parts, columns_at = parts.movedim(columns_at + 1, -1).contiguous(), -1
        signed = {1: parts.unbind(0), -1: (-parts).unbind(0)}
        blocks = {(c, b): signed[sign][a] for a, row in enumerate(self.table) for b, (sign, c) in enumerate(row)}
        # the last row first: autograd then adds up a weight's gradients from the first row on
        rows = [torch.cat([blocks[c, b] for b in range(self.dim)], columns_at) for c in reversed(range(self.dim))]
        matrix = torch.cat(rows[::-1], rows_at)
        matrix = matrix if groups == 1 else matrix.flatten(0, 1)
        return matrix.movedim(-1, 1) if channels_last else matrix

    def group_major(self, x: Tensor, groups: int, back: bool = False) -> Tensor:
        """[N, C, *S] with channels by component, group, number -> by group, component, number; or back."""
        outer = (groups, self.dim) if back else (self.dim, groups)
        if x.ndim > 2 and 0 < x.stride(1) < x.stride(-1):  # channels last: it stays so
            last: Tensor = x.movedim(1, -1).unflatten(-1, (*outer, -1)).transpose(-3, -2).flatten(-3).movedim(-1, 1)
            return last
        ordered: Tensor = x.unflatten(1, (*outer, -1)).transpose(1, 2).flatten(1, 3)
        return ordered

    def conjugate(self, components: Tensor) -> Tensor:
        """Numbers [d, *] with the opposite imaginary parts. Of a weight it transposes the block of every number."""
        return components if self.dim == 1 else torch.cat([components[:1], -components[1:]])

    def modulus(self, x: Tensor) -> Tensor:
        """|z| [N, Q, *S] of numbers [N, C, *S]; its gradient at 0 is 0."""
        parts = x.unflatten(1, (self.dim, -1))
        is_zero = ~parts.any(1, keepdim=True)  # for which the norm's second derivative would be nan
        found: Tensor = torch.linalg.vector_norm(parts.masked_fill(is_zero, 1), dim=1)
        return found.masked_fill(is_zero.squeeze(1), 0)

    def lift(self, x: Tensor) -> Tensor:
        """Real channels as numbers without imaginary parts: [N, C, *S] -> [N, d C, *S]."""
        return torch.cat([x, x.new_zeros(x.shape[0], (self.dim - 1) * x.shape[1], *x.shape[2:])], 1)


def _algebra(name: str, table: str) -> Algebra:
    """Reads a product table written with one row a line, `-2` for minus e_2 and `+0` for e_0."""
    rows = tuple(tuple((-1 if e[0] == "-" else 1, int(e[1:])) for e in row.split()) for row in table.split("/"))
    return Algebra(name, len(rows), rows)


REAL = _algebra("real", "+0")
COMPLEX = _algebra("complex", "+0 +1 / +1 -0")
QUATERNION = _algebra("quaternion", "+0 +1 +2 +3 / +1 -0 +3 -2 / +2 -3 -0 +1 / +3 +2 -1 -0")  # Hamilton: ij = k

ALGEBRAS = {algebra.name: algebra for algebra in (REAL, COMPLEX, QUATERNION)}
ALGEBRA_DIMS = {name: algebra.dim for name, algebra in ALGEBRAS.items()}


def as_algebra(algebra: str | Algebra) -> Algebra:
    """The algebra of that name.

    Raises:
        ArgumentError: there is none.
    """
    if isinstance(algebra, Algebra):
        return algebra
    if algebra not in ALGEBRAS:
        raise one_of("algebra", algebra, ALGEBRAS)
    return ALGEBRAS[algebra]
