"""Numbers of d components: their products, and the real matrices that multiply by them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hnetcl.algebra import ALGEBRA_DIMS, ALGEBRAS, COMPLEX, QUATERNION, REAL, Algebra, as_algebra
from hnetcl.errors import ArgumentError

every_algebra = pytest.mark.parametrize("algebra", ALGEBRAS.values(), ids=lambda algebra: algebra.name)
every_product = pytest.mark.parametrize(
    ("kernel", "space", "act"), [((), (), F.linear), ((3, 3), (5, 6), F.conv2d)], ids=["linear", "conv"]
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def multiply(algebra: Algebra, a: Tensor, b: Tensor) -> Tensor:
    """The product of two numbers [d]."""
    return algebra.block_matrix(a[:, None, None]) @ b


def basis(algebra: Algebra) -> list[Tensor]:
    return list(torch.eye(algebra.dim, dtype=torch.float64))


@every_algebra
def test_one_is_neutral(algebra: Algebra) -> None:
    """1 a = a 1 = a."""
    one, a = basis(algebra)[0], randn(algebra.dim)
    torch.testing.assert_close(multiply(algebra, one, a), a)
    torch.testing.assert_close(multiply(algebra, a, one), a)


def test_complex_unit() -> None:
    """i^2 = -1."""
    one, i = basis(COMPLEX)
    assert multiply(COMPLEX, i, i).equal(-one)


def test_hamiltons_rules() -> None:
    """i^2 = j^2 = k^2 = ijk = -1, and ij = k = -ji."""
    one, i, j, k = basis(QUATERNION)
    for unit in (i, j, k):
        assert multiply(QUATERNION, unit, unit).equal(-one)
    assert multiply(QUATERNION, i, j).equal(k)
    assert multiply(QUATERNION, j, i).equal(-k)
    assert multiply(QUATERNION, multiply(QUATERNION, i, j), k).equal(-one)


@every_algebra
def test_norm_is_multiplicative(algebra: Algebra) -> None:
    """|a b| = |a| |b|."""
    a, b = randn(2, algebra.dim)
    torch.testing.assert_close(multiply(algebra, a, b).norm(), a.norm() * b.norm())


@every_algebra
def test_product_is_associative(algebra: Algebra) -> None:
    """(a b) c = a (b c)."""
    a, b, c = randn(3, algebra.dim)
    left = multiply(algebra, multiply(algebra, a, b), c)
    torch.testing.assert_close(left, multiply(algebra, a, multiply(algebra, b, c)))


@every_algebra
@every_product
def test_block_matrix_multiplies_components(
    algebra: Algebra, kernel: tuple[int, ...], space: tuple[int, ...], act: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """The real layer with the block matrix adds s (w_a x_b) to component c wherever e_a e_b = s e_c."""
    d = algebra.dim
    weight, x = randn(d, 3, 2, *kernel), randn(4, 2 * d, *space)
    parts = x.chunk(d, 1)
    expected = [torch.zeros_like(act(parts[0], weight[0])) for _ in range(d)]
    for a in range(d):
        for b in range(d):
            sign, c = algebra.table[a][b]
            expected[c] += sign * act(parts[b], weight[a])
    torch.testing.assert_close(act(x, algebra.block_matrix(weight)), torch.cat(expected, 1))


@every_algebra
@every_product
def test_lifted_input_meets_stacked_components(
    algebra: Algebra, kernel: tuple[int, ...], space: tuple[int, ...], act: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """On numbers without imaginary parts a layer is the real layer whose weight stacks the components."""
    weight, x = randn(algebra.dim, 3, 2, *kernel), randn(4, 2, *space)
    torch.testing.assert_close(act(algebra.lift(x), algebra.block_matrix(weight)), act(x, weight.flatten(0, 1)))


@every_algebra
def test_block_matrix_is_differentiable(algebra: Algebra) -> None:
    """Each weight stands in d blocks, so the gradient of the matrix's squared norm is 2 d w."""
    weight = randn(algebra.dim, 3, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(algebra.block_matrix(weight).square().sum(), weight)
    torch.testing.assert_close(gradient, 2 * algebra.dim * weight.detach())


@every_algebra
def test_numbers_divides_channels(algebra: Algebra) -> None:
    """Q numbers fill d Q channels."""
    assert algebra.numbers(5 * algebra.dim) == 5


@pytest.mark.parametrize(
    ("algebra", "channels"), [(REAL, 0), (COMPLEX, 3), (COMPLEX, -2), (QUATERNION, 6), (QUATERNION, 0)], ids=str
)
def test_other_widths_are_refused(algebra: Algebra, channels: int) -> None:
    """A width that is not a positive multiple of d is an error that names the argument, the value and the rule."""
    with pytest.raises(ArgumentError) as error:
        algebra.numbers(channels, "width")
    assert str(error.value) == f"width={channels}: must be a positive multiple of {algebra.dim} ({algebra.name})"


def test_unknown_algebra_is_refused() -> None:
    """An unknown name is an error of one line that lists what is allowed, the nearest first."""
    with pytest.raises(ArgumentError) as error:
        as_algebra("quaternions")
    assert str(error.value) == "algebra=quaternions: did you mean quaternion? allowed: complex, quaternion, real"


@every_algebra
def test_names_and_algebras_are_interchangeable(algebra: Algebra) -> None:
    """`as_algebra` takes a name or the algebra itself."""
    assert as_algebra(algebra.name) is as_algebra(algebra) is algebra


def test_choices_agree() -> None:
    """The command line's table of algebras is the package's."""
    assert {name: algebra.dim for name, algebra in ALGEBRAS.items()} == ALGEBRA_DIMS


@every_algebra
@every_product
@pytest.mark.parametrize("channels_last", [False, True])
def test_block_matrix_is_the_stack_of_its_blocks(
    algebra: Algebra,
    kernel: tuple[int, ...],
    space: tuple[int, ...],
    act: Callable[[Tensor, Tensor], Tensor],
    channels_last: bool,
) -> None:
    """Bit for bit, and its gradient too, which adds the blocks' up row by row: runs compute the same numbers as ever."""
    d = algebra.dim
    weight = torch.randn(d, 3, 2, *kernel, requires_grad=True)
    components = {1: weight.unbind(0), -1: (-weight).unbind(0)}
    blocks = {c * d + b: components[sign][a] for a, row in enumerate(algebra.table) for b, (sign, c) in enumerate(row)}
    grid = torch.stack([blocks[i] for i in range(d * d)]).unflatten(0, (d, d))
    stacked = grid.movedim(1, 2).flatten(2, 3).flatten(0, 1)
    matrix, g = algebra.block_matrix(weight, channels_last), torch.randn_like(stacked)
    assert torch.equal(matrix, stacked)
    assert torch.equal(*(torch.autograd.grad(each, weight, g)[0] for each in (matrix, stacked)))
    assert not (channels_last and kernel) or matrix.is_contiguous(memory_format=torch.channels_last)


@every_algebra
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_groups_of_numbers_are_products_of_their_own(algebra: Algebra, groups: int) -> None:
    """The matrices of the groups lie one below the other; channels go into the groups' order and back."""
    weight, x = randn(algebra.dim, 12, 2, 3), randn(5, algebra.dim * 2 * groups, 3)
    each = [algebra.block_matrix(part) for part in weight.chunk(groups, 1)]
    assert torch.equal(algebra.block_matrix(weight, groups=groups), torch.cat(each))
    ordered = algebra.group_major(x, groups)
    of_groups = x.unflatten(1, (algebra.dim, -1)).chunk(groups, 2)
    assert torch.equal(ordered, torch.cat([part.flatten(1, 2) for part in of_groups], 1))
    assert torch.equal(algebra.group_major(ordered, groups, back=True), x)


@every_algebra
def test_the_conjugates_matrix_is_the_transpose(algebra: Algebra) -> None:
    """And a times its conjugate is |a|^2."""
    a = randn(algebra.dim)
    conjugate = algebra.conjugate(a)
    assert torch.equal(algebra.block_matrix(conjugate[:, None, None]), algebra.block_matrix(a[:, None, None]).T)
    torch.testing.assert_close(multiply(algebra, a, conjugate), a.square().sum() * basis(algebra)[0])
    torch.testing.assert_close(algebra.modulus(a[None]), a.norm()[None, None])
