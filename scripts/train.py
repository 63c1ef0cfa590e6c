"""Trains a hypernetwork on a sequence of tasks: python scripts/train.py task=split_mnist bn=quaternion"""

from omegaconf import DictConfig

from hnetcl.cli.call import Call
from hnetcl.cli.main import main
from hnetcl.cli.parse import parse


def job(composed: DictConfig, call: Call) -> float:
    config = parse(composed)
    from hnetcl.cli.jobs import metric, train  # torch is imported only once the configuration is good

    return metric(train(config, call), config.optimized_metric)


if __name__ == "__main__":
    main("config", job)
