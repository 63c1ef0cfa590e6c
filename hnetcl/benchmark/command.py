"""The command line of the benchmarks. A new subject is one file with `add_arguments` and `field`, and one line here."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from hnetcl.benchmark import bn
from hnetcl.benchmark.compare import Figures, compare
from hnetcl.benchmark.machine import machine
from hnetcl.errors import ArgumentError
from hnetcl.training import engine, resolve_device

SUBJECTS: dict[str, ModuleType] = {"bn": bn}


class _Parser(ArgumentParser):
    """Tells what is wrong in one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what the arguments ask for, prints a table and, where wanted, writes a JSON file.

    Args:
        argv: without the program's name; None takes the process's.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        _run(arguments)
    except ArgumentError as error:
        parser.error(str(error))


def _parser() -> _Parser:
    parser = _Parser(prog="benchmark.py", description="Measures time and memory of contenders in turn in one process.")
    subjects = parser.add_subparsers(dest="subject", required=True)
    for name, subject in SUBJECTS.items():
        own = subjects.add_parser(name, help=subject.__doc__, description=subject.__doc__)
        subject.add_arguments(own)
        own.add_argument("--device", default="auto", help="auto, cpu or cuda (default %(default)s)")
        own.add_argument("--threads", type=int, help="of the CPU")
        own.add_argument("--rounds", type=int, default=20, help="times that each contender is timed (default %(default)s)")
        own.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="contenders, as in 'quaternion/*'")
        own.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    return parser


def _run(arguments: Namespace) -> None:
    for name in ("threads", "rounds"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ArgumentError(name, value, "must be at least 1")
    if arguments.json is not None and (arguments.json.is_dir() or not arguments.json.parent.is_dir()):
        raise ArgumentError("json", arguments.json, "must be a file in an existing directory")
    device = resolve_device(arguments.device)
    with engine(seed=0, threads=arguments.threads):
        field = SUBJECTS[arguments.subject].field(arguments, device).only(arguments.only)
        steps, absent = field.build()
        asked = {"subject": arguments.subject, **field.settings, "rounds": arguments.rounds}
        found = machine(device)
        for facts in (asked, found):
            print(", ".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
        figures = compare(steps, field.unit_bytes, arguments.rounds, device)
    print(_table(figures))
    for name, reason in absent.items():
        print(f"{name} is left out: {reason}")
    if arguments.json is not None:
        record = {**asked, **found, "input_bytes": field.unit_bytes, "figures": [asdict(f) for f in figures], "absent": absent}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


def _table(figures: list[Figures]) -> str:
    from hnetcl.tracking.tables import text_table  # brings TensorBoard along, which is slow to import

    header = ["contender", "ms", f"x {figures[0].name}", "saved / input", "peak / input"]
    rows = [(f.name, f"{1e3 * f.seconds:.3f}", *(f"{v:.2f}" for v in (f.ratio, f.saved, f.peak))) for f in figures]
    return text_table(header, rows, left=0)
