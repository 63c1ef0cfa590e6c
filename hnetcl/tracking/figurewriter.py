"""When figures are drawn, and where they go."""

from collections.abc import Callable, Sequence
from pathlib import Path

from hnetcl.files import write_file
from hnetcl.registry import register
from hnetcl.training import Observer, RunDirectory, RunStart, TaskEnd
from hnetcl.training.pace import Pace

Show = Callable[[str, bytes, tuple[int, int], int], None]


class FigureWriter(Observer):
    """Writes accuracy_matrix, accuracy_curves and, where layers keep statistics, row_statistics.

    As PNG after a task, but not where this would take more than a twentieth of the time since it was done last; as PNG and PDF
    after the last task, and where the run ends early. Each picture is drawn once: TensorBoard is given the PNG.

    Args:
        folder: an existing one.
        show: is also given each figure: its name, the PNG, height and width, and the number of trained tasks.
    """

    def __init__(self, folder: Path, show: Show | None = None) -> None:
        self.folder, self.show, self.pace = folder, show, Pace()
        self.newest: TaskEnd | None = None  # until its figures are final
        self.shown = 0  # trained tasks of the newest picture

    def on_start(self, start: RunStart) -> None:
        self.newest = start.last  # the run may have ended before it was drawn

    def on_task_end(self, end: TaskEnd) -> None:
        self.newest = end
        if end.task == len(end.matrix) - 1:
            self.close()
        elif self.pace.due():
            self._draw(end, final=False)

    def close(self) -> None:
        if self.newest is not None:
            self._draw(self.newest, final=True)
            self.newest = None

    def _draw(self, end: TaskEnd, final: bool) -> None:
        with self.pace.measured():
            from hnetcl.tracking.figures import accuracy_curves, accuracy_matrix, row_statistics, to_image, to_pdf, to_png

            figures = {draw.__name__: draw(end.matrix, end.untrained) for draw in (accuracy_matrix, accuracy_curves)}
            if end.distances:
                figures["row_statistics"] = row_statistics(end.distances, end.misfits)
            for name, figure in figures.items():
                pixels = to_image(figure)
                png = to_png(pixels)
                write_file(self.folder / f"{name}.png", png, flush=False)
                if final:
                    write_file(self.folder / f"{name}.pdf", to_pdf(figure), flush=False)
                if self.show is not None and self.shown <= end.task:
                    self.show(name, png, (pixels.shape[0], pixels.shape[1]), end.task + 1)
            self.shown = end.task + 1


@register("observer", "figures")
def figures(directory: RunDirectory, others: Sequence[Observer]) -> FigureWriter:
    """Figures in a run's directory, shown to the other observers."""

    def show(name: str, png: bytes, size: tuple[int, int], trained: int) -> None:
        for observer in others:
            observer.on_figure(name, png, size, trained)

    return FigureWriter(directory.figures, show)
