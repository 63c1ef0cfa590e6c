"""Which task each sample belongs to, where it is not told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import isclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from hnetcl.errors import ArgumentError, one_of
from hnetcl.inference.inputs import watched
from hnetcl.inference.recognizer import Recognizer, Scorer
from hnetcl.model import HyperModel
from hnetcl.modules import main_logits
from hnetcl.registry import find, given, make, names, options
from hnetcl.tasks import TaskSequence

NOISE = 0.1  # standard deviation of the noise on embeddings, which start at N(0, I)
COPIES = 8  # of the embeddings, with noise

Criterion = str | Mapping[str, Any]
"""The name of a part of the kind `inference`, or its `name` with its configuration."""
Outputs = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Candidates:
    """The tasks that come into question, written once for any number of batches.

    Args:
        criterion: the configuration of a registered score.
        tasks: [B].
        params: what the hypernetwork writes for them, [B, ...] by name.
        noisy: the same from embeddings with noise, several times; empty where the criterion needs none.
        scorers: of each task, where a recognizer tells them apart; else empty.
        outputs: from which logit to before which one each candidate looks; None where all look at all.
    """

    criterion: Mapping[str, Any]
    tasks: Tensor
    params: dict[str, Tensor]
    noisy: list[dict[str, Tensor]]
    scorers: Sequence[Scorer] = ()
    outputs: Outputs | None = None


def as_criterion(criterion: Criterion) -> dict[str, Any]:
    """A part's configuration.

    Raises:
        ArgumentError: there is no such part.
    """
    values = {"name": criterion} if isinstance(criterion, str) else dict(criterion)
    if values.get("name") not in names("inference"):
        raise one_of("inference", values.get("name"), names("inference"))
    return values


def learns(criterion: Criterion) -> bool:
    """Whether it is a `Recognizer`, which learns about tasks when they have been trained."""
    return _recognizer_class(criterion) is not None


def _recognizer_class(criterion: Criterion) -> type[Recognizer] | None:
    made = find("inference", as_criterion(criterion)["name"])
    return made if isclass(made) and issubclass(made, Recognizer) else None


def add_recognizer(model: HyperModel, criterion: Criterion) -> None:
    """Gives the model the recognizer that a criterion names; where it is none, that which the model had is gone."""
    values = as_criterion(criterion)
    model.recognizer = make("inference", values) if learns(values) else None
    if model.recognizer is not None:
        model.recognizer.criterion = values


def open_recognizer(model: HyperModel, sequence: TaskSequence, criterion: Criterion) -> None:
    """Sees to it that the model has the recognizer that a criterion names, with rows for the tasks of a sequence.

    Raises:
        ArgumentError: the recognizer can't be used with the network or the tasks.
    """
    kind = _recognizer_class(criterion)
    if kind is None:
        return
    if not isinstance(model.recognizer, kind):
        add_recognizer(model, criterion)
    model.recognizer.check(sequence)
    if not model.recognizer.opened:
        first = sequence[0]
        model.recognizer.open(model, first.preprocess(first.train.images[:2]), sequence.num_classes)


def teach(model: HyperModel, sequence: TaskSequence, criterion: Criterion, batch_size: int) -> None:
    """Gives a trained model a recognizer that has looked at all tasks, with the parameters as they are now.

    Raises:
        ArgumentError: the recognizer can't be used with the network or the data.
    """
    add_recognizer(model, criterion)
    open_recognizer(model, sequence, criterion)
    for task, data in enumerate(sequence.tasks):
        model.recognizer.learn(model, task, data, batch_size)


@torch.no_grad()
def candidates(model: HyperModel, criterion: Criterion, seen: int | None = None, outputs: Outputs | None = None) -> Candidates:
    """The first `seen` tasks, or all, as candidates; `outputs` as in `Candidates`.

    Raises:
        ArgumentError: there is no such criterion, it needs task embeddings and the hypernetwork has none, or it is a recognizer
            and the model has none that has been opened, or one of other values.
    """
    values = as_criterion(criterion)
    device = next(model.hnet.parameters()).device
    tasks = torch.arange(model.hnet.num_tasks if seen is None else seen, device=device)
    if (kind := _recognizer_class(values)) is not None:
        recognizer = model.recognizer
        if not isinstance(recognizer, kind) or not recognizer.opened:
            raise ArgumentError("inference", values["name"], "the model has learned nothing that tasks are recognised by")
        _require_same(recognizer, values)
        scorers = [recognizer.scorer(task) for task in tasks.tolist()]
        return Candidates(values, tasks, model.hnet(tasks), [], scorers, outputs)
    noisy = _noisy(model, tasks, values["name"]) if "noisy" in given("inference", values["name"]) else []
    return Candidates(values, tasks, model.hnet(tasks), noisy, (), outputs)


def _require_same(recognizer: Recognizer, values: Mapping[str, Any]) -> None:
    """Refuses values that the recognizer was not made of; a name alone means whatever it was made of."""
    made = recognizer.criterion
    for key, option in options("inference", values["name"]).items() if made and len(values) > 1 else ():
        wanted, own = (each.get(key, option.default) for each in (values, made or {}))
        if wanted != own:
            rule = f"the model has learned to recognise tasks with {key}={own}; allowed: that, or to teach it anew"
            raise ArgumentError(key, wanted, rule)


@torch.no_grad()
def infer_tasks(model: HyperModel, x: Tensor, among: Candidates) -> tuple[Tensor, Tensor]:
    """The inferred task of each sample, and its logits under that task.

    Args:
        model: in evaluation mode.
        x: a batch of N samples of any tasks.
        among: as `candidates` writes them.

    Returns:
        tasks [N], logits [N, K]; minus infinity for classes that a task has not, where tasks differ in their number.
    """
    chosen, logits = compare_tasks(model, x, among)
    return chosen, logits[chosen, torch.arange(len(x), device=x.device)]


@torch.no_grad()
def compare_tasks(model: HyperModel, x: Tensor, among: Candidates) -> tuple[Tensor, Tensor]:
    """The inferred task of each sample [N], and the logits [B, N, K] under all candidates; the rest as in `infer_tasks`."""
    if among.scorers:
        found = [_watched(model, x, among, place) for place in range(len(among.tasks))]
        logits, scores = zip(*found, strict=True)
        return torch.stack(scores).argmax(0), _stacked(logits)
    every = _logits(model, x, among, among.params)
    noisy = [_logits(model, x, among, params) for params in among.noisy]
    groups = range(len(every)) if len({each.shape[1] for each in every}) > 1 else [slice(None)]  # of as many classes
    score = []
    for group in groups:
        taken = {"logits": torch.stack(_some(every, group))}
        if noisy:
            taken["noisy"] = torch.stack([torch.stack(_some(each, group)) for each in noisy])
        score.append(make("inference", among.criterion, **taken))
    return torch.cat(score).argmax(0), _stacked(every)


def _some(values: list[Tensor], group: int | slice) -> list[Tensor]:
    return values[group] if isinstance(group, slice) else [values[group]]


def _stacked(logits: Sequence[Tensor]) -> Tensor:
    """[B, N, K] of B times [N, K'], with minus infinity where K' is below K."""
    width = max(each.shape[1] for each in logits)
    return torch.stack([F.pad(each, (0, width - each.shape[1]), value=-torch.inf) for each in logits])


def _watched(model: HyperModel, x: Tensor, among: Candidates, place: int) -> tuple[Tensor, Tensor]:
    """Logits [N, K] under a candidate, and its scores [N]."""
    if model.training:
        raise ValueError("tasks are inferred in evaluation: call model.eval() before")
    params = {name: value[place] for name, value in among.params.items()}
    with watched(model.net, model.recognizer.watches) as inputs:
        logits = _own(main_logits(model.run(params, x, int(among.tasks[place]))), among, place)
    return logits, among.scorers[place](inputs, logits)


def _logits(model: HyperModel, x: Tensor, among: Candidates, params: dict[str, Tensor]) -> list[Tensor]:
    """B times [N, K]: in one pass on a GPU, task by task on a CPU, which is two to three times as fast there."""
    tasks = among.tasks
    if model.training or not x.is_cpu:
        logits = list(main_logits(model.some_tasks(x, tasks, params)))  # which refuses training mode
    else:
        own = ({name: value[place] for name, value in params.items()} for place in range(len(tasks)))
        logits = [main_logits(model.run(each, x, task)) for each, task in zip(own, tasks.tolist(), strict=True)]
    return [_own(each, among, t) for t, each in enumerate(logits)]


def _own(logits: Tensor, among: Candidates, place: int) -> Tensor:
    """Of the logits [N, ...] under a candidate those that it looks at [N, K]."""
    return logits if among.outputs is None else logits[:, slice(*among.outputs[place])]


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
