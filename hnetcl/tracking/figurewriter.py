"""When figures are drawn, and where they go."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hnetcl.files import write_file
from hnetcl.model import HyperModel
from hnetcl.registry import register
from hnetcl.tasks import TaskSequence
from hnetcl.training import Observer, RunDirectory, RunStart, TaskEnd
from hnetcl.training.pace import Pace

Show = Callable[[str, bytes, tuple[int, int], int], None]
Look = Callable[[int], Any]


class FigureWriter(Observer):
    """Writes accuracy_matrix, accuracy_curves and, where layers keep statistics, row_statistics; learned, of tasks that can be
    drawn.

    As PNG after a task, but not where this would take more than a twentieth of the time since it was done last; as PNG and PDF
    after the last task, and where the run ends early. Each picture is drawn once: TensorBoard is given the PNG.

    Args:
        folder: an existing one.
        show: is also given each figure: its name, the PNG, height and width, and the number of trained tasks.
        look: finds what is learned of so many tasks, for `learned`; None where it can't be drawn.
    """

    def __init__(self, folder: Path, show: Show | None = None, look: Look | None = None) -> None:
        self.folder, self.show, self.look, self.pace = folder, show, look, Pace()
        self.newest: TaskEnd | None = None  # until its figures are final
        self.found: Any = None  # what was learned when the newest task ended: later steps change the model
        self.shown = 0  # trained tasks of the newest picture
        self.score = "accuracy"

    def on_start(self, start: RunStart) -> None:
        self.newest, self.score = start.last, start.score  # the run may have ended before it was drawn
        if start.last is not None and start.step == 0:
            self._look(start.done)

    def on_task_end(self, end: TaskEnd) -> None:
        self.newest = end
        self._look(end.task + 1)
        if end.task == len(end.matrix) - 1:
            self.close()
        elif self.pace.due():
            self._draw(end, final=False)

    def close(self) -> None:
        if self.newest is not None:
            self._draw(self.newest, final=True)
            self.newest = None

    def _look(self, trained: int) -> None:
        if self.look is not None:
            self.found = self.look(trained)

    def _draw(self, end: TaskEnd, final: bool) -> None:
        with self.pace.measured():
            from hnetcl.tracking.figures import accuracy_curves, accuracy_matrix, row_statistics, to_image, to_pdf, to_png

            drawn = (accuracy_matrix, accuracy_curves)
            figures = {draw.__name__: draw(end.matrix, end.untrained, self.score) for draw in drawn}
            if end.distances:
                figures["row_statistics"] = row_statistics(end.distances, end.misfits)
            if self.found is not None:
                from hnetcl.tracking.learned import learned

                figures["learned"] = learned(self.found)
            for name, figure in figures.items():
                pixels = to_image(figure)
                png = to_png(pixels)
                write_file(self.folder / f"{name}.png", png, flush=False)
                if final:
                    write_file(self.folder / f"{name}.pdf", to_pdf(figure), flush=False)
                if self.show is not None and self.shown <= end.task:
                    self.show(name, png, (pixels.shape[0], pixels.shape[1]), end.task + 1)
            self.shown = end.task + 1


def is_drawable(sequence: TaskSequence) -> bool:
    """Whether its tasks are classifications of points of the plane, or functions of one number."""
    return sequence.in_shape == ((2, 1, 1) if sequence.loss == "cross_entropy" else (1, 1, 1))


@register("observer", "figures")
def figures(
    directory: RunDirectory,
    others: Sequence[Observer],
    model: HyperModel | None = None,
    sequence: TaskSequence | None = None,
) -> FigureWriter:
    """Figures in a run's directory, shown to the other observers; of a model and its sequence, also what is learned."""

    def show(name: str, png: bytes, size: tuple[int, int], trained: int) -> None:
        for observer in others:
            observer.on_figure(name, png, size, trained)

    look: Look | None = None
    if model is not None and sequence is not None and is_drawable(sequence):

        def look(trained: int) -> Any:
            from hnetcl.tracking.learned import look as found

            return found(model, sequence, trained)

    return FigureWriter(directory.figures, show, look)
