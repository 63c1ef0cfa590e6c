"""Initial weights for layers of any algebra."""

import math

import torch
from torch import Tensor


def kaiming_normal(*shape: int) -> Tensor:
    """Components w ~ N(0, 2 / fan_in), shape [d, out / d, in / d, *K].

    Each real output sums in * prod(K) products w x of independent terms, whatever d is, so the variance of He et al. 2015
    (equation 10) with the real fan-in keeps the scale of activations behind ReLUs in every algebra.
    """
    d, _, numbers, *kernel = shape
    return torch.randn(shape) * math.sqrt(2 / (d * numbers * math.prod(kernel)))
