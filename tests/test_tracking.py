"""What people see of a run."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hnetcl.errors import ArgumentError
from hnetcl.registry import register
from hnetcl.tracking import Progress, at_chance, comparison_table, log_to, observers, result_table
from hnetcl.tracking.figures import accuracy_curves, accuracy_matrix, row_statistics, to_image, to_pdf, to_png
from hnetcl.tracking.figurewriter import FigureWriter
from hnetcl.tracking.tensorboard import TensorBoard
from hnetcl.training import Observer, RunDirectory, RunStart, Step, TaskEnd

MATRIX = torch.tensor([[0.9, 0.5], [0.75, 1.0]], dtype=torch.float64)
UNTRAINED = torch.tensor([0.5, 0.25], dtype=torch.float64)


def test_the_result_table_shows_every_number_whatever_the_classes_are_called() -> None:
    names = [f"a_very_long_class_name_{k}" for k in range(20)]
    lines = result_table([names[:10], names[10:]], MATRIX).splitlines()
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
    table = comparison_table({1: ["c", "d"]}, [0.875], MATRIX[-1].tolist())
    assert [cell.strip() for cell in table.splitlines()[-1].split("|")] == ["1", "c, d", "0.875000", "1.000000"]


def matrix_of(tasks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """R and b where task j was evaluated just before its training and from then on, but not before."""
    matrix = torch.rand(tasks, tasks, dtype=torch.float64)
    return matrix.masked_fill(torch.ones(tasks, tasks).triu(2).bool(), torch.nan), torch.rand(tasks, dtype=torch.float64)


def statistics_of(layers: int, tasks: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    names = [f"layer{k // 4}.{k % 4}.bn" for k in range(layers)]
    later = torch.ones(tasks, tasks).triu(1).bool()
    apart = {name: torch.rand(tasks, tasks, dtype=torch.float64).fill_diagonal_(0) for name in names}
    return apart, {name: torch.rand(tasks, tasks).double().masked_fill(later, torch.nan) for name in names}


def labels(ticks: list[Text]) -> list[str]:
    return [tick.get_text() for tick in ticks]


@pytest.mark.parametrize("tasks", [1, 2, 13, 30, 100])
def test_ticks_of_r_are_tasks_and_init_is_row_0(tasks: int) -> None:
    figure = accuracy_matrix(*matrix_of(tasks))
    to_image(figure)
    axes = figure.axes[0]
    columns, (first, *rows) = labels(axes.get_xticklabels()), labels(axes.get_yticklabels())
    assert first == "init"
    assert axes.get_yticks()[0] == 0
    assert [int(text) + 1 for text in rows] == axes.get_yticks()[1:].tolist()
    assert [int(text) for text in columns] == axes.get_xticks().tolist()
    assert max(map(int, columns)) < tasks
    assert len(columns) <= 12
    boxes = [tick.get_window_extent() for tick in axes.get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))


@pytest.mark.parametrize("tasks", [1, 2, 8, 9, 100])
def test_a_curve_for_every_task_that_can_be_told_from_the_others(tasks: int) -> None:
    figure = accuracy_curves(*matrix_of(tasks))
    to_image(figure)
    *lines, mean = figure.axes[0].lines
    assert len(lines) == tasks
    assert mean.get_label() == "mean"
    assert len({line.get_color() for line in lines}) == tasks
    ticks = figure.axes[0].get_xticks()
    assert all(tick == int(tick) and 1 <= tick <= tasks for tick in ticks)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == (tasks + 1 if tasks <= 8 else 1)
    assert len(figure.axes) == (1 if tasks <= 8 else 2)


@pytest.mark.parametrize(("layers", "tasks"), [(1, 1), (3, 20), (4, 1), (20, 2), (50, 100), (161, 5)])
def test_statistics_of_all_layers(layers: int, tasks: int) -> None:
    apart, misfits = statistics_of(layers, tasks)
    figure = row_statistics(apart, misfits)
    assert to_image(figure).std() > 10
    if layers <= 3:
        titles = {axes.get_title().partition(":")[0] for axes in figure.axes} - {""}
        assert titles == apart.keys()
        return
    heat, points = figure.axes[:2]
    assert heat.images[0].get_array() is not None
    assert heat.images[0].get_size() == (layers, tasks)
    assert len(np.asarray(points.lines[0].get_xdata())) == layers
    if layers <= 50:
        assert labels(heat.get_yticklabels()) == list(apart)
    boxes = [tick.get_window_extent() for tick in heat.get_yticklabels()]
    assert all(above.y0 >= below.y1 - 1 for above, below in itertools.pairwise(boxes))


def test_figures_are_as_wide_as_a_column_and_equal_ones_are_equal_files() -> None:
    R, b = matrix_of(20)
    pngs, pdfs = set(), set()
    for figure in (accuracy_matrix(R, b), accuracy_matrix(R, b)):
        image = to_image(figure)
        assert image.shape[1] == 660  # 3.3 inches
        pngs.add(to_png(image))
        pdfs.add(to_pdf(figure))
    assert len(pngs) == len(pdfs) == 1


def test_a_misfit_that_is_no_number_is_left_out() -> None:
    for layers in (1, 5):
        apart, misfits = statistics_of(layers, 3)
        for values in misfits.values():
            values[2] = torch.tensor([torch.nan, torch.inf, 0.0])
        to_image(row_statistics(apart, misfits))


def end_of(task: int, tasks: int) -> TaskEnd:
    R, b = matrix_of(tasks)
    R[task + 1 :] = torch.nan
    return TaskEnd(task, None, R, b, torch.rand(tasks, 4), 1.0)


def test_figures_are_drawn_at_the_end_and_before_only_where_that_is_cheap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("hnetcl.training.pace.time.perf_counter", lambda: now)
    shown: list[tuple[str, int]] = []
    writer = FigureWriter(tmp_path, lambda name, png, size, trained: shown.append((name, trained)))
    writer.on_start(RunStart((10,) * 5, 0, None))
    for task in range(3):
        now = 19.0 if task == 0 else 21.0
        writer.on_task_end(end_of(task, 5))
    assert shown == [("accuracy_matrix", 2), ("accuracy_curves", 2), ("accuracy_matrix", 3), ("accuracy_curves", 3)]
    assert not list(tmp_path.glob("*.pdf"))
    writer.pace.cost = 1.0
    writer.on_task_end(end_of(3, 5))
    assert shown[-1][1] == 3
    writer.on_task_end(end_of(4, 5))
    assert shown[-1][1] == 5
    assert {path.name for path in tmp_path.iterdir()} == {
        f"accuracy_{k}.{s}" for k in ("matrix", "curves") for s in ("png", "pdf")
    }


@pytest.mark.usefixtures("users_parts")
def test_observers_by_name_hear_of_figures(tmp_path: Path) -> None:
    """Whatever the order of the names, those that look at others come last; nobody is there twice, or asks for what is not."""

    @register("observer", "seeing")
    class Seeing(Observer):
        def __init__(self) -> None:
            self.seen: list[tuple[str, tuple[int, int], int]] = []

        def on_figure(self, name: str, png: bytes, size: tuple[int, int], trained: int) -> None:
            assert png.startswith(b"\x89PNG")
            self.seen.append((name, size, trained))

    @register("observer", "asking")
    class Asking(Observer):
        def __init__(self, telephone: object) -> None: ...

    directory = RunDirectory(tmp_path)
    directory.create()
    seeing, figures = observers(["figures", "seeing", "seeing"], directory=directory)
    assert isinstance(seeing, Seeing)
    figures.on_task_end(end_of(1, 2))
    assert [(name, trained) for name, _, trained in seeing.seen] == [("accuracy_matrix", 2), ("accuracy_curves", 2)]
    assert all(min(size) > 100 for _, size, _ in seeing.seen)
    with pytest.raises(ArgumentError, match=r"^observer=asking: missing .*'telephone'; a observer is given "):
        observers(["asking"], directory=directory)
    with pytest.raises(ArgumentError, match=r"^observer=figure: did you mean figures\?"):
        observers(["figure"])


@pytest.mark.parametrize("done", [2, 5])
def test_figures_of_a_run_that_ends_early_or_had_ended(done: int, tmp_path: Path) -> None:
    writer = FigureWriter(tmp_path)
    writer.on_start(RunStart((10,) * 5, done, end_of(done - 1, 5)))
    writer.close()
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_quiet_where_nobody_watches(terminal: bool) -> None:
    screen = io.StringIO()
    progress = Progress(Console(file=screen, force_terminal=terminal, width=80))
    progress.on_start(RunStart((10, 10), 0, None))
    progress.on_phase("training")
    progress.on_task_start(0, 10, 0)
    progress.on_tick(1)
    if terminal:
        progress.bar.refresh()
        assert "nan" not in screen.getvalue()
        assert "loss" not in screen.getvalue()
    progress.on_tick(7)
    progress.on_step(Step(0, 10, 10, {"loss": 0.5, "penalty": 0.1}, 0.75, 1.0, 0.1))
    if terminal:
        progress.bar.refresh()
    progress.on_phase("evaluating")
    if terminal:
        progress.bar.refresh()
    progress.on_task_end(TaskEnd(0, None, MATRIX, UNTRAINED, None, 1.0))
    progress.close()
    if terminal:
        assert all(
            text in screen.getvalue() for text in ("task 0 of 2", "7/10", "0.5000", "0.750", "evaluating", "0:00:00 left")
        )
    else:
        assert screen.getvalue().strip() == ""


def test_the_time_left_is_that_of_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds a step, ten between tasks, three tasks of ten steps."""
    now = 0.0
    monkeypatch.setattr("hnetcl.tracking.progress.time.perf_counter", lambda: now)
    progress = Progress(Console(file=io.StringIO()))
    progress.on_start(RunStart((10,) * 3, 0, None))
    progress.on_phase("evaluating")
    now = 30.0
    assert progress.seconds_left() is None
    progress.on_task_start(0, 10, 0)
    progress.on_phase("training")
    for step in range(1, 11):
        progress.on_tick(step)
        now += 2.0
    assert progress.seconds_left() == pytest.approx(40 * 10 / 9, rel=0.01)
    progress.on_phase("evaluating")
    now += 10.0
    progress.on_task_start(1, 10, 10)
    progress.on_phase("training")
    assert progress.seconds_left() == 20 * 2 + 2 * 10
    progress.on_tick(1)
    now += 2.0
    progress.on_tick(2)
    assert progress.seconds_left() == 18 * 2 + 2 * 10
    for step in range(3, 11):
        now += 2.0
        progress.on_tick(step)
    now += 2.0
    progress.on_phase("evaluating")
    now += 4.0
    assert progress.seconds_left() == 10 * 2 + 2 * 10 - 4


def test_tensorboard_copes_with_numbers_that_are_none(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, "")
    board.on_start(RunStart((10, 10), 0, None))
    R = torch.tensor([[0.5, torch.nan], [torch.nan, torch.nan]], dtype=torch.float64)
    embeddings = torch.tensor([[torch.nan, 1.0], [torch.inf, 2.0]])
    misfits = {"bn": torch.full((2, 2), torch.nan, dtype=torch.float64)}
    for task in range(2):
        board.on_task_end(TaskEnd(task, None, R, UNTRAINED, embeddings, 1.0, {"bn": R}, misfits))
    board.on_end({"average_accuracy": float("nan")})
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [value.step for value in events.Scalars("accuracy/task_0")] == [1]
    assert not events.Tags()["histograms"]


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


def test_tasks_at_chance_are_named() -> None:
    """Guessing among K answers is right once in K, give or take three standard deviations."""
    assert (
        at_chance([0.5, 0.99, 0.54], [1000, 1000, 1000], [2, 2, 2]) == "at chance, as if nothing had been learned: tasks 0, 2"
    )
    assert at_chance([0.56, 0.5], [1000, 1000], [2, 10]) == ""
    assert at_chance([0.1], [50], [10]).endswith("task 0")
