"""The formulas, by hand."""

import pytest
import torch

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
        }
    )


def test_forgetting_counts_from_the_best_earlier_row() -> None:
    better_before_training = R.clone()
    better_before_training[0, 1] = 0.95
    assert metrics.forgetting(better_before_training) == pytest.approx(((0.9 - 0.6) + (0.95 - 0.8)) / 2)


def test_forgetting_is_minus_bwt_where_training_was_best() -> None:
    matrix = torch.tensor([[0.9, 0.1], [0.7, 0.8]])
    assert metrics.forgetting(matrix) == pytest.approx(-metrics.backward_transfer(matrix))


def test_one_task_forgets_nothing() -> None:
    values = metrics.summary(torch.tensor([[0.9]]), torch.tensor([0.5]))
    assert (values["forgetting"], values["bwt"], values["fwt"]) == (0, 0, 0)
    assert values["average_accuracy"] == pytest.approx(0.9)
