"""Which task a sample belongs to, where it is not told: the one whose network is surest.

All scores are [T, N], the higher the surer, and computed in log space: finite for any finite logits. A score names what it
takes: `logits` [T, N, K], or `noisy` [M, T, N, K], the same from M noisy copies of the task embeddings.

    @hnetcl.register("inference", "margin")
    def margin(logits: Tensor) -> Tensor:
        best = logits.log_softmax(-1).topk(2, -1).values
        return best[..., 0] - best[..., 1]
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from hnetcl.errors import ArgumentError, one_of
from hnetcl.model import HyperModel
from hnetcl.modules import main_logits
from hnetcl.registry import given, make, names, register

NOISE = 0.1  # standard deviation of the noise on embeddings, which start at N(0, I)
COPIES = 8  # of the embeddings, with noise


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


@dataclass(frozen=True)
class Candidates:
    """The tasks that come into question, written once for any number of batches.

    Args:
        criterion: the name of a registered score.
        tasks: [B].
        params: what the hypernetwork writes for them, [B, ...] by name.
        noisy: the same from embeddings with noise, several times; empty where the criterion needs none.
        classes: K, where candidate t looks at the logits from t K on only; None where it looks at all.
    """

    criterion: str
    tasks: Tensor
    params: dict[str, Tensor]
    noisy: list[dict[str, Tensor]]
    classes: int | None = None


@torch.no_grad()
def candidates(model: HyperModel, criterion: str, seen: int | None = None, classes: int | None = None) -> Candidates:
    """The first `seen` tasks, or all, as candidates.

    Raises:
        ArgumentError: there is no such criterion, or it needs task embeddings and the hypernetwork has none.
    """
    if criterion not in names("inference"):
        raise one_of("inference", criterion, names("inference"))
    device = next(model.hnet.parameters()).device
    tasks = torch.arange(model.hnet.num_tasks if seen is None else seen, device=device)
    noisy = _noisy(model, tasks, criterion) if "noisy" in given("inference", criterion) else []
    return Candidates(criterion, tasks, model.hnet(tasks), noisy, classes)


@torch.no_grad()
def infer_tasks(model: HyperModel, x: Tensor, among: Candidates) -> tuple[Tensor, Tensor]:
    """The inferred task of each sample, and its logits under that task.

    Args:
        model: in evaluation mode.
        x: a batch of N samples of any tasks.
        among: as `candidates` writes them.

    Returns:
        tasks [N], logits [N, K].
    """
    chosen, logits = compare_tasks(model, x, among)
    return chosen, logits[chosen, torch.arange(len(x), device=x.device)]


@torch.no_grad()
def compare_tasks(model: HyperModel, x: Tensor, among: Candidates) -> tuple[Tensor, Tensor]:
    """The inferred task of each sample [N], and the logits [B, N, K] under all candidates; the rest as in `infer_tasks`."""
    logits = _logits(model, x, among, among.params)
    taken = {"logits": logits}
    if among.noisy:
        taken["noisy"] = torch.stack([_logits(model, x, among, params) for params in among.noisy])
    score: Tensor = make("inference", {"name": among.criterion}, **taken)
    return score.argmax(0), logits


def _logits(model: HyperModel, x: Tensor, among: Candidates, params: dict[str, Tensor]) -> Tensor:
    """[B, N, K]: in one pass on a GPU, task by task on a CPU, which is two to three times as fast there."""
    tasks = among.tasks
    if model.training or not x.is_cpu:
        logits = main_logits(model.some_tasks(x, tasks, params))  # which refuses training mode
    else:
        own = ({name: value[place] for name, value in params.items()} for place in range(len(tasks)))
        logits = torch.stack([main_logits(model.run(each, x, task)) for each, task in zip(own, tasks.tolist(), strict=True)])
    if among.classes is None:
        return logits
    return torch.stack([each[:, among.classes * t : among.classes * (t + 1)] for t, each in enumerate(logits)])


def _noisy(model: HyperModel, tasks: Tensor, criterion: str) -> list[dict[str, Tensor]]:
    """What the hypernetwork writes from embeddings with noise, which is the same at every call."""
    embeddings = model.hnet.embeddings
    if embeddings is None:
        others = ", ".join(name for name in names("inference") if "noisy" not in given("inference", name))
        rule = f"{type(model.hnet).__name__} has no task embeddings to put noise on; allowed: {others}"
        raise ArgumentError("inference", criterion, rule)
    generator = torch.Generator(embeddings.device).manual_seed(0)
    noise = torch.randn((COPIES, *embeddings.shape), generator=generator, device=embeddings.device)
    return [functional_call(model.hnet, {"embedding": embeddings + NOISE * each}, (tasks,)) for each in noise]
