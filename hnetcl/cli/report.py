"""`hnetcl report`: runs as tables, figures and one page."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetcl.errors import ArgumentError, StorageError, one_of
from hnetcl.files import write_file

if TYPE_CHECKING:
    from hnetcl.reporting import Comparison, RunRecord, Table

FORMATS = ("terminal", "markdown", "csv", "latex")
USAGE_ERROR = 2
SEEDS = "0,1,2"
USED = {  # by which kinds of report
    "by": ("comparison",),
    "metrics": ("comparison",),
    "baseline": ("comparison",),
    "claims": ("commands", "published"),
    "seeds": ("commands",),
    "folders": ("comparison", "published"),
    "out": ("comparison", "published"),
}


class Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    def error(self, message: str) -> Any:
        print(f"report: {message}; see report --help", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def parser() -> Parser:
    """The arguments."""
    made = Parser(prog="hnetcl report", description="Tables and figures of all runs at and below some folders.")
    made.add_argument("folders", nargs="*", metavar="DIR", help="folders of runs and sweeps")
    made.add_argument("--by", metavar="KEYS", help="configuration keys that tell groups apart, as method.name,bn.algebra")
    made.add_argument("--metrics", metavar="NAMES", help="names in metrics.json; the first is compared")
    made.add_argument(
        "--baseline", metavar="KEY=VALUE", help="the group that others are compared with, as method.name=finetune"
    )
    made.add_argument("--format", choices=FORMATS, default="terminal", help="of what is printed")
    made.add_argument(
        "--out", metavar="FOLDER", help="writes the tables in all formats, the figures as PNG and PDF, and report.html"
    )
    made.add_argument(
        "--delta",
        action="store_true",
        help="evaluates what stats=batch and stats=0 would give, once; needs --out, where it is kept",
    )
    made.add_argument("--published", action="store_true", help="sets runs beside published numbers, with a verdict")
    made.add_argument("--claims", metavar="FILE", help="published numbers of your own, a CSV like conf/published.csv")
    made.add_argument("--commands", metavar="PROTOCOL", help="prints the commands that train a protocol's published rows")
    made.add_argument("--seeds", metavar="N,N", help=f"of these commands ({SEEDS} where left out)")
    return made


def _require_used(told: argparse.Namespace) -> None:
    """Refuses what would go unused."""
    kind = "commands" if told.commands is not None else "published" if told.published else "comparison"
    for name, kinds in USED.items():
        value = getattr(told, name)
        if value not in (None, False, []) and kind not in kinds:
            with_what = "" if kind == "comparison" else f" with --{kind}"
            others = ", ".join("a comparison" if each == "comparison" else f"--{each}" for each in kinds)
            value = " ".join(value) if isinstance(value, list) else value
            raise ArgumentError("DIR" if name == "folders" else name, value, f"goes unused{with_what}; allowed with {others}")


def report(words: Sequence[str]) -> None:
    """Does what the words say.

    Raises:
        SystemExit: with 2 where something is refused, in one line.
    """
    told = parser().parse_args(list(words))
    try:
        _require_used(told)
        if told.commands is not None:
            _commands(told)
        elif not told.folders:
            raise ArgumentError("DIR", None, "is missing: name folders of runs")
        else:
            _report(told)
    except (ArgumentError, StorageError) as error:
        print(error, file=sys.stderr)
        sys.exit(USAGE_ERROR)


def _report(told: argparse.Namespace) -> None:
    from hnetcl.cli.plain import read_config
    from hnetcl.reporting import comparison, find_runs, incomplete, verdicts
    from hnetcl.reporting.table import FORMATS as WRITERS

    records = find_runs(told.folders, read_config)
    notes: list[str] = []
    if told.out is not None:
        told.out = _folder(told.out, records)
    if told.delta:
        if told.out is None:
            raise ArgumentError("delta", True, "needs --out FOLDER: what is evaluated is kept there")
        from hnetcl.cli.delta import with_deltas

        records, notes = with_deltas(records, told.out)
    if told.published:
        from hnetcl.cli.protocols import claims, wanted

        table, unmet = verdicts(claims(told.claims), records, wanted)
        tables, found = [table, *incomplete(records)], None
        if unmet and told.format == "terminal":
            print(f"{len(unmet)} rows were not run; `report --commands PROTOCOL` prints what trains them", file=sys.stderr)
    else:
        found = comparison(records, _listed(told.by), _listed(told.metrics), _baseline(told.baseline))
        tables = [found.table, *incomplete(records), replace(found.runs, notes=[*found.runs.notes, *notes])]
    print("\n\n".join(WRITERS[told.format](table) for table in tables))
    if told.out is not None:
        _write(told.out, tables, found, records)


def _folder(text: str, records: "Sequence[RunRecord]") -> Path:
    """The folder of the report, made where it is missing; never inside a run."""
    folder = Path(text).expanduser()
    for record in records:
        if folder.resolve().is_relative_to(record.path.resolve()):
            raise ArgumentError("out", text, f"lies in the directory of a run ({record.path}), which stays as it is")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError("out", text, f"can't be made ({error.strerror})") from error
    return folder


def _write(folder: Path, tables: "Sequence[Table]", found: "Comparison | None", records: "Sequence[RunRecord]") -> None:
    from hnetcl.reporting import class_table, page, run_figures
    from hnetcl.reporting.table import FORMATS as WRITERS
    from hnetcl.tracking.figures import to_image, to_pdf, to_png

    if found is not None:
        tables = [*tables, *class_table(found)]
    endings = {"terminal": "txt", "markdown": "md", "csv": "csv", "latex": "tex"}
    for table in tables:
        for name, write in WRITERS.items():
            file = folder / f"{table.title.lower().replace(' ', '_')}.{endings[name]}"
            write_file(file, (write(table) + "\n").encode())
    pictures = {}
    for name, figure in (run_figures(found) if found is not None else {}).items():
        pictures[name] = to_png(to_image(figure))
        write_file(folder / f"{name}.png", pictures[name])
        write_file(folder / f"{name}.pdf", to_pdf(figure))
    write_file(folder / "report.html", page("Report", tables, pictures, records).encode())
    print(f"written: {folder}")


def _commands(told: argparse.Namespace) -> None:
    from hnetcl.cli.protocols import claims

    every = claims(told.claims)
    known = sorted({claim.protocol for claim in every})
    if told.commands not in known:
        raise one_of("commands", told.commands, known)
    seeds = (SEEDS if told.seeds is None else told.seeds).split(",")
    if not all(seed.isdecimal() for seed in seeds):
        raise ArgumentError("seeds", told.seeds, "must be whole numbers with commas between them")
    lines = [claim.command(seed) for claim in every if claim.protocol == told.commands for seed in seeds]
    print("\n".join(dict.fromkeys(lines)))


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _baseline(text: str | None) -> Mapping[str, str] | None:
    if text is None:
        return None
    pairs = [word.partition("=") for word in text.split(",")]
    if not all(key and equals for key, equals, _ in pairs):
        raise ArgumentError("baseline", text, "must be KEY=VALUE, or several with commas between them")
    return {key: value for key, _, value in pairs}
