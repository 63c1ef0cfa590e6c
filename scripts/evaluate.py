"""Evaluates a finished run from its directory: python scripts/evaluate.py run=DIR [task=K] [stats=own|K|batch]"""

from omegaconf import DictConfig

from hnetcl.cli.call import Call
from hnetcl.cli.main import main
from hnetcl.cli.parse import parse_evaluation


def job(composed: DictConfig, call: Call) -> float:
    arguments = parse_evaluation(composed)
    from hnetcl.cli.jobs import evaluate  # torch is imported only once the arguments are good

    found = evaluate(arguments)
    return sum(found) / len(found)


if __name__ == "__main__":
    main("evaluate", job)
