"""A small MLP that yields many values, chunk by chunk, from the same last layer."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AT_ONCE = 16  # tasks whose features are held in memory at once
SHARE = 0.75  # of the variance of what the trunk sees, that chunk embeddings have where chunks are to start apart


class _ByInput(torch.autograd.Function):
    """ReLU, with a derivative that no comparison is needed for."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return F.relu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return gradient * x.sign().clamp_min(0)


class ReLU(nn.Module):
    """ReLU that stores no mask when compiled: torch's compiler would store one, which on a CPU takes longer than the ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _ByInput.apply(x) if torch.compiler.is_compiling() else F.relu(x)
        return y


Activation = Literal["relu", "elu"]
ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], float]] = {  # with E f(x)^2 for x ~ N(0, 1)
    "relu": (ReLU, 0.5),
    "elu": (nn.ELU, 0.644944),
}


class ChunkMLP(nn.Module):
    """chunk_k = head(trunk([e_t, c_k])) for all chunks k in one batch; the chunks laid end to end are its outputs.

    With one chunk there need be no chunk embedding. Unit variance comes in and, before training, goes out (He et al. 2015).

    Args:
        sizes: of the outputs for every parameter, which lie one after the other in the chunks.
        embedding_dim: E, of task embeddings.
        hidden: widths of the trunk's layers.
        chunk_size: S, values in a chunk; the last chunk may hold more than there is to generate.
        chunk_embedding_dim: of the chunk embeddings c_k, which all tasks share; 0 for none.
        activation: behind the trunk's layers, "relu" or "elu".
    """

    def __init__(
        self,
        sizes: Sequence[int],
        embedding_dim: int,
        hidden: Sequence[int],
        chunk_size: int,
        chunk_embedding_dim: int = 0,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        kind, square = ACTIVATIONS[activation]
        self.sizes, self.chunk_size = list(sizes), chunk_size
        self.chunks = ceil(sum(sizes) / chunk_size)
        embeddings = torch.randn(self.chunks, chunk_embedding_dim)
        self.chunk_embedding = nn.Parameter(embeddings) if chunk_embedding_dim else None
        widths = [embedding_dim + chunk_embedding_dim, *hidden]
        layers: list[nn.Module] = []
        for i, (width, out) in enumerate(pairwise(widths)):
            layers += [_linear(width, out, square if i else 1), kind()]
        self.trunk = nn.Sequential(*layers)
        self.head = _linear(widths[-1], chunk_size, square if hidden else 1)

    @torch.no_grad()
    def set_chunks_apart(self) -> None:
        """Makes chunks differ more, before training.

        What ReLU layers yield is positive, and a task's embedding is the same for all chunks: single chunks start correlated
        by 0.5 to 0.8. Where the chunks are layers of a residual network, whose outputs are summed, these then do alike, and the
        sum of n grows as n does, not as its root. So the chunk embeddings get `SHARE` of the variance that comes in, and the
        head's bias takes away the mean of what it sees.
        """
        if self.chunk_embedding is None or self.chunks == 1:
            return
        first = next(layer for layer in (*self.trunk, self.head) if isinstance(layer, nn.Linear))
        width, own = first.in_features, self.chunk_embedding.shape[1]
        first.weight[:, : width - own] *= ((1 - SHARE) * width / (width - own)) ** 0.5
        first.weight[:, width - own :] *= (SHARE * width / own) ** 0.5
        features = self.features(torch.randn(AT_ONCE, width - own))
        self.head.bias.copy_(-self.head.weight @ features.mean((0, 1)))

    def features(self, embeddings: Tensor) -> Tensor:
        """What the head sees: [B, E] -> [B, C, H]."""
        pairs = embeddings[:, None].expand(-1, self.chunks, -1)
        if self.chunk_embedding is not None:
            pairs = torch.cat([pairs, self.chunk_embedding.expand(len(embeddings), -1, -1)], -1)
        features: Tensor = self.trunk(pairs.flatten(0, 1)).unflatten(0, (-1, self.chunks))
        return features

    def forward(self, embeddings: Tensor) -> list[Tensor]:
        """The outputs for every parameter: [B, E] -> [B, n] for each n of `sizes`."""
        return self.outputs(self.features(embeddings))

    def outputs(self, features: Tensor) -> list[Tensor]:
        """The outputs for every parameter: [B, C, H] -> [B, n] for each n of `sizes`."""
        outputs: Tensor = self.head(features).flatten(1)
        return list(outputs.split([*self.sizes, outputs.shape[1] - sum(self.sizes)], 1)[:-1])

    def mean_squares(self, embeddings: Tensor) -> Tensor:
        """The mean of the squared outputs for each parameter: [B, E] -> [B, len(sizes)].

        The squares of W a, for some outputs of the head, sum up to a^T (W^T W) a, so no output is computed for it.
        """
        size = self.chunk_size
        whole, cut, end = [], [], 0
        for parameter, count in enumerate(self.sizes):
            begin, end = end, end + count
            first, last = ceil(begin / size), end // size  # the chunks that lie within the parameter
            whole.append((first, max(first, last)))
            edges = [(begin, end)] if first > last else [(begin, first * size), (last * size, end)]
            for low, high in edges:
                if low < high:
                    cut.append((parameter, low // size, self._gram(low % size, low % size + high - low)))
        gram = self._gram(0, size if any(first < last for first, last in whole) else 0)
        squares = []
        for few in embeddings.split(AT_ONCE):
            features = self.features(few)
            features = torch.cat([features, torch.ones_like(features[..., :1])], -1)
            by_chunk = (features @ gram * features).sum(2)
            found = torch.stack([by_chunk[:, first:last].sum(1) for first, last in whole], 1)
            for parameter, chunk, own in cut:
                found[:, parameter] += (features[:, chunk] @ own * features[:, chunk]).sum(1)
            squares.append(found)
        return torch.cat(squares) / torch.tensor(self.sizes, device=embeddings.device).clamp_min(1)

    def _gram(self, begin: int, end: int) -> Tensor:
        """W^T W for some outputs of the head, with their biases as last column of W: [H + 1, H + 1]."""
        weight = torch.cat([self.head.weight[begin:end], self.head.bias[begin:end, None]], 1)
        return weight.T @ weight


def chunk_mlp_size(
    outputs: int, embedding_dim: int, hidden: Sequence[int], chunk_size: int, chunk_embedding_dim: int = 0
) -> int:
    """Trainable values of a `ChunkMLP` with so many outputs."""
    widths = [embedding_dim + chunk_embedding_dim, *hidden, chunk_size]
    return ceil(outputs / chunk_size) * chunk_embedding_dim + sum((width + 1) * out for width, out in pairwise(widths))


def _linear(width: int, out: int, square: float) -> nn.Linear:
    """Makes outputs of unit variance from inputs with that mean square."""
    linear = nn.Linear(width, out)
    nn.init.normal_(linear.weight, std=(square * width) ** -0.5)
    nn.init.zeros_(linear.bias)
    return linear
