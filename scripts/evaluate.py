"""Evaluates a finished run from its directory: python scripts/evaluate.py run=DIR [task=K] [stats=own|K|batch]"""

from hnetcl.cli.commands import evaluate

if __name__ == "__main__":
    evaluate()
