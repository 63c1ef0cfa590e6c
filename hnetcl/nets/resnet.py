"""Residual networks for small images: ResNet-20, -32, -44, -56, -110."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Le
from torch import nn

from hnetcl.algebra import Algebra, AlgebraName, as_algebra
from hnetcl.errors import ArgumentError
from hnetcl.nets.blocks import Norm, WidthUnit, conv_norm, first_algebra, real_width
from hnetcl.nets.residual import ResidualNet, Shortcut, basic_stages
from hnetcl.registry import register


@register("net", "resnet")
class ResNet(ResidualNet):
    """A convolution, three stages of n blocks, the second and third at half the size and twice the width: depth 6 n + 2.

    Args:
        in_shape: (C, H, W) of an image.
        num_outputs: K, logits per task.
        norm: width -> norm layer; None for none: convolutions then have biases, and branches are scaled (see `branch_scale`).
        depth: 20, 32, 44, 56, 110, or any other 6 n + 2.
        width: of the first stage.
        shortcut: where the width grows. "A": zeros for the missing numbers, no parameters; "B": a 1 x 1 convolution.
        width_unit: what `width` counts, real channels or numbers of d channels each.
        algebra: of all layers but the first and the head.
        in_algebra: of the first, see `first_algebra`.

    Raises:
        ArgumentError: the depth is not 6 n + 2, or the width, that of the norm included, is not a multiple of d.

    Source: He et al. 2016 (arXiv:1512.03385), section 4.2, whose networks have option A.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        num_outputs: int,
        norm: Norm | None = None,
        *,
        depth: Annotated[int, Ge(8), Le(1202)] = 32,
        width: Annotated[int, Ge(1)] = 16,
        shortcut: Shortcut = "A",
        width_unit: WidthUnit = "channels",
        algebra: AlgebraName | Algebra = "real",
        in_algebra: AlgebraName | Algebra = "real",
    ) -> None:
        algebra = as_algebra(algebra)
        first = first_algebra(in_algebra, algebra, in_shape)
        if depth % 6 != 2:
            raise ArgumentError("depth", depth, "must be 6 n + 2, as 20, 32, 44, 56 and 110 are")
        channels = real_width(width, width_unit, algebra, norm)
        stem = [*conv_norm(in_shape[0], channels, 3, first, norm, padding=1), nn.ReLU()]
        stages = basic_stages(channels, [depth // 6] * 3, shortcut, algebra, norm)
        super().__init__(stem, stages, [], 4 * channels, num_outputs)
