"""A table, and the ways to write it."""

import csv
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hnetcl.tracking import text_table

LONG = 60  # letters of a cell that a browser may break
LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}


@dataclass(frozen=True)
class Cell:
    """Text, and the number behind it where there is one."""

    text: str
    value: Any = None
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A title, names of columns, and rows of as many cells."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    left: int = 1  # columns of words, from the left
    right: int = 0  # and from the right

    def _has_words(self, column: int) -> bool:
        return column < self.left or column >= len(self.header) - self.right

    def terminal(self) -> str:
        """The best of a column has a star."""
        rows = [[plain(cell.text) + ("*" if cell.bold else "") for cell in row] for row in self.rows]
        table = text_table(
            list(map(plain, self.header)), rows, left=list(filter(self._has_words, range(len(self.header)))), width=None
        )
        return "\n".join([plain(self.title), table, *map(plain, self.notes)])

    def markdown(self) -> str:
        """A table of GitHub's Markdown."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cells) + " |"

        marks = ["---" if self._has_words(place) else "---:" for place in range(len(self.header))]
        rows = [[_marked(cell.text, cell.bold) for cell in row] for row in self.rows]
        table = [line([_escaped(name) for name in self.header]), line(marks), *map(line, rows)]
        return "\n\n".join([f"**{_escaped(self.title)}**", "\n".join(table), *map(_escaped, self.notes)])

    def csv(self) -> str:
        """Numbers with all their digits."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows([cell.text if cell.value is None else cell.value for cell in row] for row in self.rows)
        return file.getvalue()

    def latex(self) -> str:
        """A tabular of the package booktabs."""

        def line(cells: Sequence[str]) -> str:
            return " & ".join(cells) + r" \\"

        rows = [[rf"\textbf{{{_latex(cell.text)}}}" if cell.bold else _latex(cell.text) for cell in row] for row in self.rows]
        columns = "".join("l" if self._has_words(place) else "r" for place in range(len(self.header)))
        body = [r"\toprule", line([_latex(name) for name in self.header]), r"\midrule", *map(line, rows), r"\bottomrule"]
        notes = [f"% {plain(note)}" for note in (self.title, *self.notes)]
        return "\n".join([*notes, rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"])

    def html(self) -> str:
        """A table, and its notes as paragraphs."""

        def line(cells: Sequence[str], tag: str) -> str:
            kinds = ["" if self._has_words(place) else "number" for place in range(len(cells))]
            kinds = ["long" if len(cell) > LONG else kind for cell, kind in zip(cells, kinds, strict=True)]
            classes = [f' class="{kind}"' if kind else "" for kind in kinds]
            return "<tr>" + "".join(f"<{tag}{c}>{cell}</{tag}>" for c, cell in zip(classes, cells, strict=True)) + "</tr>"

        rows = [
            [f"<b>{html.escape(cell.text)}</b>" if cell.bold else html.escape(cell.text) for cell in row] for row in self.rows
        ]
        head, body = line([html.escape(name) for name in self.header], "th"), "\n".join(line(row, "td") for row in rows)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        table = f"<table><thead>{head}</thead><tbody>\n{body}\n</tbody></table>"
        return f'<h2>{html.escape(self.title)}</h2><div class="wide">{table}</div>{notes}'


FORMATS: dict[str, Callable[[Table], str]] = {
    "terminal": Table.terminal,
    "markdown": Table.markdown,
    "csv": Table.csv,
    "latex": Table.latex,
}


def plain(text: str) -> str:
    """On one line, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _escaped(text: str) -> str:
    escaped = plain(text)
    for letter in "\\|*_`<>[]":
        escaped = escaped.replace(letter, f"\\{letter}")
    return escaped


def _marked(text: str, bold: bool) -> str:
    return f"**{_escaped(text)}**" if bold and text else _escaped(text)


def _latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in plain(text)).replace("±", r"$\pm$")
