"""Wide residual networks."""

from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge, Le, Lt
from torch import Tensor, nn

from hnetcl.algebra import Algebra, AlgebraName, as_algebra
from hnetcl.errors import ArgumentError
from hnetcl.layers import Conv2d
from hnetcl.nets.blocks import Norm, WidthUnit, conv_norm, first_algebra, real_width
from hnetcl.nets.residual import Residual, ResidualNet, branch_scale
from hnetcl.registry import register


class PreactivatedBlock(Residual):
    """shortcut + branch(relu(norm(x))), with a shortcut from x, or where the width changes from relu(norm(x)).

    Args:
        norm: the layer, or an identity.
        branch, shortcut, scale: as in `Residual`.
        projects: whether the width changes.
    """

    def __init__(self, norm: nn.Module, branch: nn.Module, shortcut: nn.Module, scale: float, projects: bool) -> None:
        super().__init__(branch, shortcut, scale)
        self.norm, self.projects = norm, projects

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm(x))
        return self.joined(active, active if self.projects else x)


@register("net", "wide_resnet")
class WideResNet(ResidualNet):
    """A convolution, three stages of n blocks with norm and ReLU before each convolution: WRN-d-k with depth d = 6 n + 4.

    Args:
        in_shape: (C, H, W) of an image.
        num_outputs: K, logits per task.
        norm: width -> norm layer; None for none, see `ResNet`.
        depth: 16, 22, 28, 40, or any other 6 n + 4.
        widen: k; the stages are k, 2 k and 4 k times as wide as the first convolution.
        width: of the first convolution.
        dropout: rate between the two convolutions of a block; the paper has 0.3 where it has any.
        width_unit: what `width` counts, real channels or numbers of d channels each.
        algebra: of all layers but the first and the head.
        in_algebra: of the first, see `first_algebra`.

    Raises:
        ArgumentError: the depth is not 6 n + 4, or the width, that of the norm included, is not a multiple of d.

    Source: Zagoruyko & Komodakis 2016 (arXiv:1605.07146), table 1.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        num_outputs: int,
        norm: Norm | None = None,
        *,
        depth: Annotated[int, Ge(10), Le(1000)] = 28,
        widen: Annotated[int, Ge(1)] = 2,
        width: Annotated[int, Ge(1)] = 16,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
        width_unit: WidthUnit = "channels",
        algebra: AlgebraName | Algebra = "real",
        in_algebra: AlgebraName | Algebra = "real",
    ) -> None:
        algebra = as_algebra(algebra)
        first = first_algebra(in_algebra, algebra, in_shape)
        if depth % 6 != 4:
            raise ArgumentError("depth", depth, "must be 6 n + 4, as 16, 22, 28 and 40 are")
        width_in, scale = real_width(width, width_unit, algebra, norm), branch_scale(depth // 6 * 3, norm)
        stem = Conv2d(in_shape[0], width_in, 3, first, bias=norm is None, padding=1)
        stages: list[list[nn.Module]] = []
        for i, out in enumerate([widen * width_in << i for i in range(3)]):
            stages.append([])
            for j in range(depth // 6):
                stages[-1].append(_block(width_in, out, 2 if i and not j else 1, dropout, algebra, norm, scale))
                width_in = out
        super().__init__([stem], stages, [*([norm(width_in)] if norm else []), nn.ReLU()], width_in, num_outputs)


def _block(
    width_in: int, out: int, stride: int, dropout: float, algebra: Algebra, norm: Norm | None, scale: float
) -> PreactivatedBlock:
    """Two convolutions with norm, ReLU and dropout between them (figure 1 d)."""
    bias, projects = norm is None, stride != 1 or width_in != out
    branch = nn.Sequential(
        *conv_norm(width_in, out, 3, algebra, norm, stride, padding=1),
        nn.ReLU(),
        *([nn.Dropout(dropout)] if dropout else []),
        Conv2d(out, out, 3, algebra, bias, padding=1),
    )
    shortcut = Conv2d(width_in, out, 1, algebra, bias, stride) if projects else nn.Identity()
    return PreactivatedBlock(norm(width_in) if norm else nn.Identity(), branch, shortcut, scale, projects)
