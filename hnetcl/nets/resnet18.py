"""ResNet-18, for small images too."""

from collections.abc import Sequence
from typing import Annotated, Literal

from annotated_types import Ge
from torch import nn

from hnetcl.algebra import Algebra, AlgebraName, as_algebra
from hnetcl.nets.blocks import Norm, WidthUnit, conv_norm, first_algebra, real_width
from hnetcl.nets.residual import ResidualNet, basic_stages
from hnetcl.registry import register


@register("net", "resnet18")
class ResNet18(ResidualNet):
    """A stem and four stages of two blocks, each but the first at half the size and twice the width.

    Args:
        in_shape: (C, H, W) of an image.
        num_outputs: K, logits per task.
        norm: width -> norm layer; None for none, see `ResNet`.
        width: of the first stage. 64; 20 in the reduced network of Lopez-Paz & Ranzato 2017.
        stem: "small", a 3 x 3 convolution, as continual learning has it for small images; "imagenet", a 7 x 7 convolution with
            stride 2 and 3 x 3 max pooling with stride 2.
        width_unit: what `width` counts, real channels or numbers of d channels each.
        algebra: of all layers but the first and the head.
        in_algebra: of the first, see `first_algebra`.

    Raises:
        ArgumentError: the width, that of the norm included, is not a multiple of d.

    Sources: He et al. 2016 (arXiv:1512.03385), table 1, with option B; Lopez-Paz & Ranzato 2017 (arXiv:1706.08840).
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        num_outputs: int,
        norm: Norm | None = None,
        *,
        width: Annotated[int, Ge(1)] = 64,
        stem: Literal["small", "imagenet"] = "small",
        width_unit: WidthUnit = "channels",
        algebra: AlgebraName | Algebra = "real",
        in_algebra: AlgebraName | Algebra = "real",
    ) -> None:
        algebra = as_algebra(algebra)
        first = first_algebra(in_algebra, algebra, in_shape)
        channels = real_width(width, width_unit, algebra, norm)
        if stem == "small":
            before = [*conv_norm(in_shape[0], channels, 3, first, norm, padding=1), nn.ReLU()]
        else:
            before = [*conv_norm(in_shape[0], channels, 7, first, norm, 2, padding=3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        stages = basic_stages(channels, [2] * 4, "B", algebra, norm)
        super().__init__(before, stages, [], 8 * channels, num_outputs)
