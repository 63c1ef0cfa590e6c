"""Trains a hypernetwork on a sequence of tasks: python scripts/train.py task=split_mnist bn=quaternion"""

from hnetcl.cli.commands import train

if __name__ == "__main__":
    train()
