"""Evaluates a finished run from its directory: python scripts/evaluate.py run=DIR [task=K] [stats=own|K|batch]"""

from omegaconf import DictConfig

from hnetcl.cli.main import main
from hnetcl.cli.parse import parse_evaluation


def job(composed: DictConfig) -> None:
    arguments = parse_evaluation(composed)
    from hnetcl.cli.jobs import evaluate  # torch is imported only once the arguments are good

    evaluate(arguments)


if __name__ == "__main__":
    main("evaluate", job)
