"""The formulas, by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hnetcl import metrics

R = torch.tensor([[0.9, 0.2, 0.3], [0.8, 0.7, 0.5], [0.6, 0.8, 1.0]], dtype=torch.float64)
B = torch.tensor([0.1, 0.1, 0.4], dtype=torch.float64)


def test_formulas() -> None:
    assert metrics.summary(R, B) == pytest.approx(
        {
            "average_accuracy": (0.6 + 0.8 + 1.0) / 3,
            "forgetting": ((0.9 - 0.6) + (0.7 - 0.8)) / 2,
            "bwt": ((0.6 - 0.9) + (0.8 - 0.7)) / 2,
            "fwt": ((0.2 - 0.1) + (0.5 - 0.4)) / 2,
            "average_incremental_accuracy": (0.9 + 0.75 + 0.8) / 3,
            "learning_accuracy": (0.9 + 0.7 + 1.0) / 3,
        }
    )


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[0.5, 0.9, 0.2], [0.5, 0.6, 0.2], [0.5, 0.6, 0.9]], 0.0),  # task 1 was at 0.9 before it was trained
        ([[0.9, 0.2, 0.3], [0.95, 0.7, 0.5], [0.6, 0.8, 1.0]], ((0.95 - 0.6) + (0.7 - 0.8)) / 2),  # best after its training
        ([[0.8, 1.0], [0.7, 0.6]], 0.1),
    ],
)
def test_forgetting_counts_from_the_best_row_since_the_task_was_trained(matrix: list[list[float]], expected: float) -> None:
    assert metrics.forgetting(torch.tensor(matrix, dtype=torch.float64)) == pytest.approx(expected)


def by_loops(R: Any, b: Any) -> dict[str, float]:
    """The formulas as they are written, entry by entry."""
    T = len(R)
    drops, backward, forward, incremental = [], [], [], []
    for j in range(T - 1):
        best = -1.0
        for i in range(j, T - 1):
            best = max(best, R[i, j])
        drops.append(best - R[T - 1, j])
        backward.append(R[T - 1, j] - R[j, j])
        forward.append(R[j, j + 1] - b[j + 1])
    for i in range(T):
        incremental.append(sum(R[i, j] for j in range(i + 1)) / (i + 1))
    return {
        "average_accuracy": sum(R[T - 1, j] for j in range(T)) / T,
        "forgetting": sum(drops) / (T - 1) if T > 1 else 0.0,
        "bwt": sum(backward) / (T - 1) if T > 1 else 0.0,
        "fwt": sum(forward) / (T - 1) if T > 1 else 0.0,
        "average_incremental_accuracy": sum(incremental) / T,
        "learning_accuracy": sum(R[j, j] for j in range(T)) / T,
    }


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_formulas_entry_by_entry_and_what_was_not_measured_changes_nothing(tasks: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    R, b = random.random((tasks, tasks)), random.random(tasks)
    expected = by_loops(R, b)
    assert metrics.summary(torch.from_numpy(R), torch.from_numpy(b)) == pytest.approx(expected, abs=1e-12)
    R[np.triu_indices(tasks, 2)] = np.nan
    b[0] = np.nan
    assert metrics.summary(torch.from_numpy(R), torch.from_numpy(b)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("average_accuracy", lambda i, j: i == 3),
        ("backward_transfer", lambda i, j: (i == 3 and j < 3) or i == j < 3),
        ("forward_transfer", lambda i, j: j == i + 1),
        ("forgetting", lambda i, j: j <= i and j < 3),
        ("average_incremental_accuracy", lambda i, j: j <= i),
    ],
)
def test_a_metric_reads_only_what_its_formula_names(name: str, read: Callable[[int, int], bool]) -> None:
    full = torch.rand(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sparse = full.clone()
    for i in range(4):
        for j in range(4):
            if not read(i, j):
                sparse[i, j] = torch.nan
    b = [torch.tensor([torch.nan, 0.1, 0.2, 0.3], dtype=torch.float64)] if name == "forward_transfer" else []
    value = getattr(metrics, name)(sparse, *b)
    assert value == value
    assert value == getattr(metrics, name)(full, *b)


def test_forgetting_is_minus_bwt_where_training_was_best() -> None:
    matrix = torch.tensor([[0.9, 0.1], [0.7, 0.8]])
    assert metrics.forgetting(matrix) == pytest.approx(-metrics.backward_transfer(matrix))


def test_one_task_forgets_nothing() -> None:
    values = metrics.summary(torch.tensor([[0.9]]), torch.tensor([0.5]))
    assert (values["forgetting"], values["bwt"], values["fwt"]) == (0, 0, 0)
    assert values["average_accuracy"] == pytest.approx(0.9)
