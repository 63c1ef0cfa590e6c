"""Which task a sample belongs to, where it is not told: the one whose network is surest.

All scores are [T, N], the higher the surer, and computed in log space: finite for any finite logits. A score names what it
takes: `logits` [T, N, K], or `noisy` [M, T, N, K], the same from M noisy copies of the task embeddings.

    @hnetcl.register("inference", "margin")
    def margin(logits: Tensor) -> Tensor:
        best = logits.log_softmax(-1).topk(2, -1).values
        return best[..., 0] - best[..., 1]
"""

import torch
from torch import Tensor

from hnetcl.registry import register


@register("inference", "entropy")
def entropy(logits: Tensor) -> Tensor:
    """Minus the entropy of the predicted classes, in nats (von Oswald et al. 2020, HNET+ENT): [T, N, K] -> [T, N]."""
    log = logits.double().log_softmax(-1)
    return (log.exp() * log).sum(-1)


@register("inference", "confidence")
def confidence(logits: Tensor) -> Tensor:
    """Log-probability of the likeliest class (Hendrycks & Gimpel 2017): [T, N, K] -> [T, N]."""
    return logits.double().log_softmax(-1).amax(-1)


@register("inference", "agreement")
def agreement(noisy: Tensor) -> Tensor:
    """Minus what M predictions differ by, the mean divergence from their average in nats: [M, T, N, K] -> [T, N].

    That is the mutual information of prediction and noise (Houlsby et al. 2011, equation 2).
    """
    log = noisy.double().log_softmax(-1)
    average = log.logsumexp(0) - torch.log(torch.tensor(len(log), dtype=log.dtype, device=log.device))
    return -(log.exp() * (log - average)).sum(-1).mean(0)
