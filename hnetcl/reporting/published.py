"""What papers report, and what our runs of the same protocol find."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hnetcl.errors import ArgumentError
from hnetcl.files import read_text
from hnetcl.reporting.comparison import SAME, number, shown
from hnetcl.reporting.numbers import spread
from hnetcl.reporting.runs import RunRecord
from hnetcl.reporting.table import Cell, Table

COLUMNS = ("protocol", "method", "metric", "value", "spread", "tolerance", "seeds", "source", "read_from", "overrides")
DEVIATIONS = 3  # published standard deviations within which a mean is the same


@dataclass(frozen=True)
class Claim:
    """A published number.

    Args:
        protocol: an experiment, `conf/experiment/PROTOCOL.yaml`.
        method: what the source calls it.
        metric: a name in metrics.json.
        value: as a fraction.
        spread: published standard deviation over seeds, or None.
        tolerance: within which our mean is the same, where no deviation is published, or it is not all that is known.
        seeds: published number of seeds, or None.
        source, read_from: the paper, and its table or figure.
        overrides: what our command says besides `experiment=PROTOCOL`.
    """

    protocol: str
    method: str
    metric: str
    value: float
    spread: float | None
    tolerance: float | None
    seeds: int | None
    source: str
    read_from: str
    overrides: tuple[str, ...]

    @property
    def allowed(self) -> float:
        """The largest difference that is none."""
        return self.tolerance if self.tolerance is not None else DEVIATIONS * (self.spread or 0.0)

    def command(self, seed: int | str) -> str:
        """What trains it."""
        return " ".join(["hnetcl train", f"experiment={self.protocol}", *self.overrides, f"seed={seed}"])


def read_claims(path: Path) -> list[Claim]:
    """The lines of a file like conf/published.csv.

    Raises:
        ArgumentError: the file can't be read, or a line is none of a claim; names the line.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path))))
    except (ValueError, csv.Error) as error:
        raise ArgumentError("published", str(path), str(error)) from error
    claims = []
    for line, row in enumerate(rows, start=2):
        missing = [name for name in COLUMNS if row.get(name) is None]
        if missing:
            raise ArgumentError("published", str(path), f"line {line} has no column {missing[0]}")
        try:
            claims.append(
                Claim(
                    row["protocol"],
                    row["method"],
                    row["metric"],
                    float(row["value"]),
                    float(row["spread"]) if row["spread"] else None,
                    float(row["tolerance"]) if row["tolerance"] else None,
                    int(row["seeds"]) if row["seeds"] else None,
                    row["source"],
                    row["read_from"],
                    tuple(row["overrides"].split()),
                )
            )
        except ValueError as error:
            raise ArgumentError("published", str(path), f"line {line}: {error}") from error
    return claims


def verdicts(
    claims: Sequence[Claim], records: Sequence[RunRecord], wanted: Callable[[Claim], Mapping[str, Any]]
) -> tuple[Table, list[str]]:
    """Each published number beside that of all our complete runs with the same configuration, and a verdict.

    Args:
        wanted: the configuration by `group.key` that a claim's command means.

    Returns:
        The table; and the claims that no run belongs to, as commands.
    """
    rows, unmet = [], []
    complete = [(record, _compared(record.config)) for record in records if record.complete]
    for claim in claims:
        config = _compared(wanted(claim))
        own = np.array([r.metrics[claim.metric] for r, found in complete if found == config and claim.metric in r.metrics])
        published = [Cell(claim.protocol), Cell(claim.method)]
        value = number(claim.value) + (f" ± {number(claim.spread)}" if claim.spread is not None else "")
        published += [Cell(value, claim.value), Cell("" if claim.seeds is None else str(claim.seeds), claim.seeds)]
        if not len(own):
            unmet.append(claim.command("0"))
            none = [Cell(""), Cell("0", 0), Cell(""), Cell(f"{claim.allowed:.4f}"), Cell("not run"), Cell(claim.source)]
            rows.append([*published, *none])
            continue
        mean, off = float(own.mean()), spread(own)
        apart = mean - claim.value
        verdict = "within" if abs(apart) <= claim.allowed + 1e-12 else "outside"
        ours = number(mean) + ("" if math.isnan(off) else f" ± {number(off)}")
        found = [Cell(ours, mean), Cell(str(len(own)), len(own)), Cell(f"{apart:+.4f}", apart), Cell(f"{claim.allowed:.4f}")]
        rows.append([*published, *found, Cell(verdict), Cell(claim.source)])
    met = sum(row[8].text == "within" for row in rows)
    header = ["protocol", "method", "published", "seeds", "own", "runs", "difference", "allowed", "verdict", "source"]
    note = f"{met} of {len(claims)} within; allowed: {DEVIATIONS} published standard deviations, or the tolerance of the file"
    return Table("Published and own", header, rows, [note], left=2, right=2), unmet


def _compared(config: Mapping[str, Any]) -> dict[str, str]:
    """What must be the same: all but what makes no other experiment."""
    return {key: shown(value) for key, value in config.items() if key not in SAME}
