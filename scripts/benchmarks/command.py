"""The command line of the benchmarks. A new subject is one file with `add_arguments` and `field`, and one line here.

The first line of the file's docstring is what `--help` says of the subject; all of it is what `SUBJECT --help` says.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from benchmarks import bn, conv_bn, inference, layers, memory, nets, recognition, regularizer, strategies, train
from benchmarks.inputs import at_least
from benchmarks.machine import machine
from hnetcl.errors import ArgumentError
from hnetcl.training import engine, resolve_device

SUBJECTS: dict[str, ModuleType] = {
    "bn": bn,
    "conv_bn": conv_bn,
    "layers": layers,
    "memory": memory,
    "train": train,
    "nets": nets,
    "strategies": strategies,
    "regularizer": regularizer,
    "inference": inference,
    "recognition": recognition,
}


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
        text = subject.__doc__ or ""
        own = subjects.add_parser(name, help=text.partition("\n")[0], description=text)
        subject.add_arguments(own)
        own.add_argument("--device", default="auto", help="auto, cpu or cuda (default %(default)s)")
        own.add_argument("--threads", type=int, help="of the CPU")
        own.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="contenders, as in 'quaternion/*'")
        own.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    return parser


def _run(arguments: Namespace) -> None:
    at_least(1, arguments, "threads")
    if arguments.json is not None and (arguments.json.is_dir() or not arguments.json.parent.is_dir()):
        raise ArgumentError("json", arguments.json, "must be a file in an existing directory")
    device = resolve_device(arguments.device)
    with engine(seed=0, threads=arguments.threads):
        field = SUBJECTS[arguments.subject].field(arguments, device).only(arguments.only)
        asked = {"subject": arguments.subject, **field.settings}
        found = machine(device)
        for facts in (asked, found):
            print(", ".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
        report = field.measure(field.contenders)
    from hnetcl.tracking.tables import text_table

    print(text_table(report.header, report.rows, left=(0,)))
    print(report.note)
    for name, reason in report.absent.items():
        print(f"{name} is left out: {reason}")
    if arguments.json is not None:
        record = {**asked, **found, "figures": report.figures, "absent": report.absent}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
