"""What people see of a run."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from hnetcl.tasks import Images, TaskSequence, split_sequence
from hnetcl.tracking import Progress, comparison_table, log_to, result_table
from hnetcl.tracking.figures import accuracy_curves, accuracy_matrix, to_image
from hnetcl.training import Step, TaskEnd

MATRIX = torch.tensor([[0.9, 0.5], [0.75, 1.0]], dtype=torch.float64)
UNTRAINED = torch.tensor([0.5, 0.25], dtype=torch.float64)


def sequence(names: list[str]) -> TaskSequence:
    labels = torch.arange(len(names)).repeat(3)
    pixels = torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8)
    images = Images("set", pixels, labels, pixels, labels, tuple(names))
    return split_sequence(images, num_tasks=2, classes_per_task=len(names) // 2, val_size=0)


def test_the_result_table_shows_every_number_whatever_the_classes_are_called() -> None:
    lines = result_table(sequence([f"a_very_long_class_name_{k}" for k in range(20)]), MATRIX).splitlines()
    assert len(lines) == 4
    assert [cell.strip() for cell in lines[0].split("|")] == [
        "task",
        "classes",
        "after its training",
        "at the end",
        "difference",
    ]
    assert [cell.strip() for cell in lines[2].split("|")][2:] == ["0.900000", "0.750000", "-0.150000"]
    assert [cell.strip() for cell in lines[3].split("|")][2:] == ["1.000000", "1.000000", "+0.000000"]


def test_the_comparison_table_shows_the_evaluated_tasks() -> None:
    table = comparison_table(sequence(list("abcd")), [1], [0.875], MATRIX[-1].tolist())
    assert [cell.strip() for cell in table.splitlines()[-1].split("|")] == ["1", "c, d", "0.875000", "1.000000"]


@pytest.mark.parametrize("tasks", [1, 2, 30])
def test_figures_of_any_number_of_tasks(tasks: int) -> None:
    matrix = torch.rand(tasks, tasks, dtype=torch.float64)
    matrix[-1] = torch.nan
    for figure in (accuracy_matrix(matrix, torch.rand(tasks)), accuracy_curves(matrix, torch.rand(tasks))):
        image = to_image(figure)
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert image.std() > 10


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_quiet_where_nobody_watches(terminal: bool) -> None:
    screen = io.StringIO()
    progress = Progress(Console(file=screen, force_terminal=terminal, width=120), 2)
    progress.on_task_start(0, 10, 0)
    progress.on_step(Step(0, 10, 10, 0.5, 0.1, 0.75, 1.0, 0.1))
    progress.bar.refresh()
    progress.on_task_end(TaskEnd(0, None, MATRIX, UNTRAINED, None, 1.0))
    progress.close()
    if terminal:
        assert all(text in screen.getvalue() for text in ("task 0 of 2", "10/10", "0.5000", "0.750"))
    else:
        assert screen.getvalue().strip() == ""


def test_the_log_goes_to_the_screen_and_with_the_time_to_the_file(tmp_path: Path) -> None:
    screen = io.StringIO()
    with log_to(Console(file=screen, width=20), tmp_path / "log") as log:
        log.info("a line that is longer than the screen is wide [not markup]")
    log.info("nobody listens any more")
    assert screen.getvalue() == "a line that is longer than the screen is wide [not markup]\n"
    text = (tmp_path / "log").read_text()
    assert text.endswith(" a line that is longer than the screen is wide [not markup]\n")
    assert text[:2] == "20"


def test_what_ends_a_run_is_in_its_log(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), log_to(Console(file=io.StringIO()), tmp_path / "log"):
        1 / 0  # noqa: B018
    assert "ZeroDivisionError" in (tmp_path / "log").read_text()
