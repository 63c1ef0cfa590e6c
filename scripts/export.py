"""Writes tasks' networks of a finished run as files that need no hnetcl: python scripts/export.py run=DIR [task=K]"""

from hnetcl.cli.commands import export

if __name__ == "__main__":
    export()
