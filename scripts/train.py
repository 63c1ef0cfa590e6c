"""Trains a hypernetwork on a sequence of tasks: python scripts/train.py task=split_mnist bn=quaternion"""

from omegaconf import DictConfig

from hnetcl.cli.main import job_directory, main, run_name
from hnetcl.cli.parse import parse


def job(composed: DictConfig) -> None:
    config = parse(composed)
    from hnetcl.cli.jobs import train  # torch is imported only once the configuration is good

    train(config, job_directory(), run_name())


if __name__ == "__main__":
    main("config", job)
