"""Products of numbers written out, as plain as can be: what the layers are compared with."""

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor, Tensor], Tensor]


def multiply(product: Product, weight: Tensor, x: Tensor) -> Tensor:
    """w x for components w [d, ...] and component-major x [N, d Q, *S]; Hamilton's rules, ij = k.

    Args:
        product: of a component of the weight and one of x [N, Q, *S], bilinear.
        weight: [d, ...].
        x: the numbers.
    """
    d = len(weight)
    parts = x.chunk(d, 1)
    w = [[product(part, component) for part in parts] for component in weight]  # w[a][b] = w_a x_b
    if d == 1:
        return w[0][0]
    if d == 2:
        return torch.cat([w[0][0] - w[1][1], w[0][1] + w[1][0]], 1)
    return torch.cat(
        [
            w[0][0] - w[1][1] - w[2][2] - w[3][3],
            w[0][1] + w[1][0] + w[2][3] - w[3][2],
            w[0][2] - w[1][3] + w[2][0] + w[3][1],
            w[0][3] + w[1][2] - w[2][1] + w[3][0],
        ],
        1,
    )


def times(x: Tensor, q: Tensor) -> Tensor:
    """x q: every number of component-major x [N, d Q, *S] times one number q [d] from the right."""
    d = len(q)
    if d < 4:
        return multiply(lambda part, component: component * part, q, x)
    reverse = torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=x.dtype)  # x q is the conjugate of q* x*

    def conjugate(z: Tensor) -> Tensor:
        opposite: Tensor = z.unflatten(1, (4, -1)) * reverse.view(4, *[1] * (z.ndim - 1))
        return opposite.flatten(1, 2)

    return conjugate(multiply(lambda part, component: component * part, q * reverse, conjugate(x)))


def to_complex(x: Tensor) -> Tensor:
    """Component-major real [N, 2 Q, *S] as complex [N, Q, *S]."""
    return torch.complex(*x.chunk(2, 1))


def from_complex(z: Tensor) -> Tensor:
    """The inverse of `to_complex`."""
    return torch.cat([z.real, z.imag], 1)
