"""Directories of runs as tables, figures and one page."""

from hnetcl.reporting.classes import class_table
from hnetcl.reporting.comparison import DELTAS, Comparison, comparison, incomplete
from hnetcl.reporting.figures import run_figures
from hnetcl.reporting.page import page
from hnetcl.reporting.published import Claim, read_claims, verdicts
from hnetcl.reporting.runs import RunRecord, find_runs, flat
from hnetcl.reporting.table import Cell, Table

__all__ = [
    "DELTAS",
    "Cell",
    "Claim",
    "Comparison",
    "RunRecord",
    "Table",
    "class_table",
    "comparison",
    "find_runs",
    "flat",
    "incomplete",
    "page",
    "read_claims",
    "run_figures",
    "verdicts",
]
