"""Tables and figures of runs: see `python scripts/report.py --help`."""

import sys

from hnetcl.cli.report import report

if __name__ == "__main__":
    report(sys.argv[1:])
