"""What residual networks are made of: blocks of two 3 x 3 convolutions beside a shortcut, in stages."""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnetcl.algebra import Algebra
from hnetcl.layers import Linear
from hnetcl.nets.blocks import Norm, conv_norm

Shortcut = Literal["A", "B"]


class Residual(nn.Module):
    """relu(shortcut(x) + scale * branch(x)): [N, in, H, W] -> [N, out, H', W'].

    Args:
        branch: what is learned beside the shortcut.
        shortcut: the way around it.
        scale: see `branch_scale`.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module, scale: float) -> None:
        super().__init__()
        self.branch, self.shortcut, self.scale = branch, shortcut, scale

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.joined(x, x))

    def joined(self, x: Tensor, around: Tensor) -> Tensor:
        """The sum, of what goes through the branch and what goes around it."""
        return torch.add(self.shortcut(around), self.branch(x), alpha=self.scale)


def branch_scale(blocks: int, norm: Norm | None) -> float:
    """What the branches of that many blocks are multiplied by: 1, and without a norm 1 / sqrt(blocks).

    Without a norm a block would make activations sqrt(3) times as large, and fifty of them make them overflow; so scaled all of
    them together make them e times as large at most (Hayou et al. 2021, arXiv:2010.12859).
    """
    return 1.0 if norm else blocks**-0.5


class PaddedShortcut(nn.Module):
    """Option A of He et al. 2016: every `stride`-th position, and zeros for the numbers that are missing. It has no parameters.

    As in common code (github.com/akamaster/pytorch_resnet_cifar10, hypnettorch) half of the zeros come first.

    Args:
        more: channels that are missing, a multiple of d.
        stride: of the block.
        algebra: of the numbers.
    """

    def __init__(self, more: int, stride: int, algebra: Algebra) -> None:
        super().__init__()
        numbers = more // algebra.dim
        self.before, self.behind = numbers // 2, numbers - numbers // 2
        self.stride, self.dim = stride, algebra.dim

    def forward(self, x: Tensor) -> Tensor:
        components = x[..., :: self.stride, :: self.stride].unflatten(1, (self.dim, -1))
        return F.pad(components, (0, 0, 0, 0, self.before, self.behind)).flatten(1, 2)


def basic_block(
    width_in: int, width_out: int, stride: int, shortcut: Shortcut, algebra: Algebra, norm: Norm | None, scale: float
) -> Residual:
    """Two convolutions, a norm behind each, and ReLU between them and behind the sum (He et al. 2016, figure 2)."""
    branch = nn.Sequential(
        *conv_norm(width_in, width_out, 3, algebra, norm, stride, padding=1),
        nn.ReLU(),
        *conv_norm(width_out, width_out, 3, algebra, norm, padding=1),
    )
    around: list[nn.Module] = []
    if stride != 1 or width_in != width_out:
        if shortcut == "A":
            around = [PaddedShortcut(width_out - width_in, stride, algebra)]
        else:
            around = conv_norm(width_in, width_out, 1, algebra, norm, stride)
    return Residual(branch, nn.Sequential(*around), scale)


class ResidualNet(nn.Module):
    """Stem, stages of blocks, the mean over all positions, and a real head: [N, C, H, W] -> [N, num_outputs].

    Args:
        stem: layers.
        stages: the blocks of each.
        tail: layers behind the last stage.
        width: channels that the head sees.
        num_outputs: K, logits per task.
    """

    def __init__(
        self,
        stem: Iterable[nn.Module],
        stages: Iterable[Sequence[nn.Module]],
        tail: Iterable[nn.Module],
        width: int,
        num_outputs: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*stem)
        self.stages = nn.Sequential(*(nn.Sequential(*blocks) for blocks in stages))
        self.tail = nn.Sequential(*tail, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.tail(self.stages(self.stem(x))))
        return logits


def basic_stages(
    width: int, blocks: Sequence[int], shortcut: Shortcut, algebra: Algebra, norm: Norm | None
) -> list[list[nn.Module]]:
    """Stages of basic blocks; each but the first halves the image and doubles the width, which is `width` at the start."""
    stages: list[list[nn.Module]] = []
    width_in, scale = width, branch_scale(sum(blocks), norm)
    for i, count in enumerate(blocks):
        stages.append([])
        for j in range(count):
            stages[-1].append(basic_block(width_in, width << i, 2 if i and not j else 1, shortcut, algebra, norm, scale))
            width_in = width << i
    return stages
