"""Our metrics beside those of Avalanche 0.6, Continuum 1.2.7 and Mammoth: where they agree, and how they differ.

Each library's formulas are written out here, so that they are compared everywhere; where a library is installed, its own
functions are found to compute them.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peers import peer

from hnetcl import metrics

IMAGES = 40  # of each task
SIZES = [1, 2, 5, 10]


def counts(tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """How many of each task's images are right, after each task [T, T] and before the first [T]."""
    random = np.random.default_rng(tasks)
    return random.integers(0, IMAGES + 1, (tasks, tasks)), random.integers(0, IMAGES + 1, tasks)


def ours(R: np.ndarray, b: np.ndarray) -> dict[str, float]:
    return metrics.summary(torch.from_numpy(R), torch.from_numpy(b))


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def avalanche_formulas(R: np.ndarray, b: np.ndarray) -> dict[str, float]:
    T = len(R)
    return {
        "stream_accuracy": mean([R[T - 1, j] for j in range(T)]),
        "bwt": mean([R[T - 1, j] - R[j, j] for j in range(T - 1)]),
        "forgetting": mean([R[j, j] - R[T - 1, j] for j in range(T - 1)]),  # from the first value, not the best
        "fwt": mean([R[j - 1, j] - b[j] for j in range(1, T)]),
        "amca": mean([mean([R[i, j] for j in range(i + 1)]) for i in range(T)]),
    }


def continuum_formulas(R: np.ndarray) -> dict[str, float]:
    T = len(R)
    pairs = T * (T - 1) / 2 or 1
    return {
        "accuracy": mean([R[T - 1, j] for j in range(T)]),
        "average_incremental_accuracy": mean([mean([R[i, j] for j in range(i + 1)]) for i in range(T)]),
        "accuracy_A": sum(R[i, j] for i in range(T) for j in range(i + 1)) / (T * (T + 1) / 2),
        "backward_transfer": sum(R[i, j] - R[j, j] for i in range(T) for j in range(i - 1)) / pairs,
        "forward_transfer": sum(R[i, j] for i in range(T) for j in range(i)) / pairs,
        "forgetting": sum(max(R[i, j] for i in range(j, T - 2)) - R[T - 1, j] for j in range(T - 2)) / max(1, T - 1),
    }


def mammoth_formulas(R: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Of utils/metrics.py; R without what it does not test, which it takes for 0."""
    T = len(R)
    tested = np.triu(np.ones((T, T)), 2) == 0  # the seen tasks and the next
    best = (R * tested).max(0)
    return {
        "accuracy": mean([R[T - 1, j] for j in range(T)]),
        "backward_transfer": mean([R[T - 1, j] - R[j, j] for j in range(T - 1)]),
        "forward_transfer": mean([R[j - 1, j] - b[j] for j in range(1, T)]),
        "forgetting": mean([best[j] - R[T - 1, j] for j in range(T - 1)]),
    }


@pytest.mark.parametrize("tasks", SIZES)
def test_where_the_definitions_agree(tasks: int) -> None:
    R, b = (values / IMAGES for values in counts(tasks))
    own, avalanche, continuum, mammoth = ours(R, b), avalanche_formulas(R, b), continuum_formulas(R), mammoth_formulas(R, b)
    for name, others in {
        "average_accuracy": (avalanche["stream_accuracy"], continuum["accuracy"], mammoth["accuracy"]),
        "bwt": (avalanche["bwt"], -avalanche["forgetting"], mammoth["backward_transfer"]),
        "fwt": (avalanche["fwt"], mammoth["forward_transfer"]),
        "average_incremental_accuracy": (avalanche["amca"], continuum["average_incremental_accuracy"]),
    }.items():
        assert own[name] == pytest.approx(others[0], abs=1e-12)
        assert list(others) == pytest.approx([own[name]] * len(others), abs=1e-12)


@pytest.mark.parametrize("tasks", [3, 5, 10])
def test_how_the_others_differ(tasks: int) -> None:
    """Each difference comes from the entries that docs/metrics.md names, and from no others."""
    R, b = (values / IMAGES for values in counts(tasks))
    T, last = tasks, R[-1]
    best = [max(R[i, j] for i in range(j, T - 1)) for j in range(T - 1)]

    mammoth = mammoth_formulas(R, b)["forgetting"]  # its best may lie in the row before a task was trained, and in the last
    assert mammoth >= max(0.0, ours(R, b)["forgetting"]) - 1e-12
    wider = [max([best[j], last[j], *([R[j - 1, j]] if j else [])]) for j in range(T - 1)]
    assert mammoth == pytest.approx(mean([wider[j] - last[j] for j in range(T - 1)]))

    R[T - 2, : T - 1] = 0  # so that no best lies in the row that Continuum leaves out, but for the task of that row
    left_out = R[T - 2, T - 2] - last[T - 2]
    assert continuum_formulas(R)["forgetting"] == pytest.approx(ours(R, b)["forgetting"] - left_out / (T - 1))

    rows = [sum(R[i, j] - R[j, j] for j in range(i)) for i in range(1, T)]  # its backward transfer is over all rows
    nearest = sum(R[j + 1, j] - R[j, j] for j in range(T - 1))  # but for the task just before
    assert continuum_formulas(R)["backward_transfer"] == pytest.approx((sum(rows) - nearest) / (T * (T - 1) / 2))
    assert rows[-1] / (T - 1) == pytest.approx(ours(R, b)["bwt"])


def answers(task: int, right: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and labels [N] of a task's images, of two classes in turn; so many are right, of both classes alike."""
    labels = 2 * task + torch.arange(IMAGES) % 2
    return torch.where(torch.arange(IMAGES) < right, labels, (labels + 1) % classes), labels


@pytest.mark.parametrize("tasks", SIZES)
def test_avalanche(tasks: int) -> None:
    theirs = peer("avalanche.evaluation.metrics")
    right, first = counts(tasks)
    right -= right % 2  # as many of both classes, so that the mean over classes is that over images
    expected = avalanche_formulas(right / IMAGES, first / IMAGES)
    stream = [theirs.StreamForgetting(), theirs.StreamBWT(), theirs.StreamForwardTransfer()]
    amca, incremental = theirs.AverageMeanClassAccuracy(), 0.0

    def tell(hook: str, strategy: Any) -> None:
        for metric in stream:
            getattr(metric, hook)(strategy)

    for i in range(-1, tasks):
        strategy = strategy_at(max(0, i))
        if i >= 0:
            tell("before_training_exp", strategy)
            amca.next_experience()
        tell("before_eval", strategy)
        accuracy = theirs.Accuracy()
        for j in range(tasks):
            predicted, labels = answers(j, int(first[j] if i < 0 else right[i, j]), 2 * tasks)
            strategy = strategy_at(j, labels, F.one_hot(predicted, 2 * tasks))
            for hook in ("before_eval_exp", "after_eval_iteration", "after_eval_exp"):
                tell(hook, strategy)
            accuracy.update(predicted, labels)
            if 0 <= j <= i:
                amca.update(predicted, labels, 0)
        if i >= 0:
            incremental = amca.result()[0]
        tell("after_eval", strategy)
    found = [metric.result() for metric in stream]
    assert found == pytest.approx([expected[name] for name in ("forgetting", "bwt", "fwt")])
    assert accuracy.result() == pytest.approx(expected["stream_accuracy"])
    assert incremental == pytest.approx(expected["amca"])


def strategy_at(task: int, labels: torch.Tensor | None = None, logits: torch.Tensor | None = None) -> Any:
    """What Avalanche's metrics read of a training."""
    stream, clock = SimpleNamespace(name="test"), SimpleNamespace(train_iterations=0)
    experience = SimpleNamespace(current_experience=task, task_labels=[0], origin_stream=stream)
    return SimpleNamespace(experience=experience, mb_y=labels, mb_output=logits, clock=clock, is_eval=True, eval_every=0)


@pytest.mark.parametrize("tasks", SIZES)
def test_continuum(tasks: int) -> None:
    logger = peer("continuum.metrics").Logger(list_subsets=["test"])
    right, _ = counts(tasks)
    for i in range(tasks):
        for j in range(i + 1):
            predicted, labels = answers(j, int(right[i, j]), 2 * tasks)
            logger.add([predicted.numpy(), labels.numpy(), np.full(IMAGES, j)], subset="test")
        if i < tasks - 1:
            logger.end_task()
    expected = continuum_formulas(right / IMAGES)
    assert {name: getattr(logger, name) for name in expected} == pytest.approx(expected)
    assert np.mean(logger.accuracy_per_task) == pytest.approx(expected["accuracy"])


@pytest.mark.parametrize(
    ("name", "weighted"),
    [
        ("average_accuracy", lambda R, n: R[-1] @ n / n.sum()),
        (
            "average_incremental_accuracy",
            lambda R, n: mean([R[i, : i + 1] @ n[: i + 1] / n[: i + 1].sum() for i in range(len(R))]),
        ),
    ],
)
def test_tasks_count_alike_whatever_their_sizes(name: str, weighted: Callable[..., float]) -> None:
    """Avalanche's stream accuracy and Continuum's `accuracy` weigh them by their images: equal where these are as many."""
    R, b = (values / IMAGES for values in counts(5))
    assert ours(R, b)[name] == pytest.approx(weighted(R, np.full(5, IMAGES)))
    assert abs(ours(R, b)[name] - weighted(R, np.array([1.0, 2.0, 3.0, 4.0, 50.0]))) > 1e-3
