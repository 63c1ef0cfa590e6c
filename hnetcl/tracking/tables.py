"""Tables as text."""

from collections.abc import Collection, Mapping, Sequence
from math import sqrt
from textwrap import shorten

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

WIDTH = 100
CLASSES_WIDTH = 36


def result_table(classes: Sequence[Sequence[str]], matrix: Tensor) -> str:
    """A line per task: its classes, its accuracy right after its training and at the end, and their difference."""
    rows = [
        (str(j), _names(names), number(matrix[j, j]), number(matrix[-1, j]), f"{matrix[-1, j] - matrix[j, j]:+.6f}")
        for j, names in enumerate(classes)
    ]
    return text_table(["task", "classes", "after its training", "at the end", "difference"], rows)


def at_chance(accuracy: Sequence[float], images: Sequence[int], answers: Sequence[int]) -> str:
    """Names tasks whose accuracy is what guessing gives, within three standard deviations of a binomial; "" where none is.

    Args:
        accuracy: of each task.
        images: that it was measured on.
        answers: among which a guess would be drawn.
    """
    found = []
    for task, (value, count, number) in enumerate(zip(accuracy, images, answers, strict=True)):
        chance = 1 / number
        if value <= chance + 3 * sqrt(chance * (1 - chance) / count):
            found.append(str(task))
    if not found:
        return ""
    return f"at chance, as if nothing had been learned: task{'s' if len(found) > 1 else ''} {', '.join(found)}"


def comparison_table(classes: Mapping[int, Sequence[str]], now: Sequence[float], recorded: Sequence[float] | None) -> str:
    """A line per evaluated task: its classes, its accuracy now, and what training recorded at the end, where it did."""
    rows = [
        (str(j), _names(names), number(value), *([] if recorded is None else [number(recorded[j])]))
        for (j, names), value in zip(classes.items(), now, strict=True)
    ]
    return text_table(["task", "classes", "accuracy", *([] if recorded is None else ["recorded"])], rows)


def number(value: float | Tensor) -> str:
    """An accuracy with all the digits that a count of up to a million images can make differ; a whole number as it is."""
    return str(value) if isinstance(value, int) else f"{float(value):.6f}"


def text_table(
    header: list[str], rows: Sequence[Sequence[str]], left: Collection[int] = (1,), width: int | None = WIDTH
) -> str:
    """A line per row; all columns but those numbered in `left` are aligned on the right. Without a width, as wide as needed."""
    table = Table(box=box.ASCII2, show_edge=False)
    for k, name in enumerate(header):
        table.add_column(name, justify="left" if k in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))  # a plain string would be read as markup: a class may be called [/x] or :cat:
    console = Console(width=width or 10_000, color_system=None)
    with console.capture() as text:
        console.print(table)
    return "\n".join(line.rstrip() for line in text.get().strip("\n").splitlines() if line.strip())


def _names(classes: Sequence[str]) -> str:
    """As many classes as fit; the numbers beside them never give way."""
    return shorten(", ".join(classes), CLASSES_WIDTH, placeholder=" ...")
