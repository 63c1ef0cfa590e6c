"""The commands: `hnetcl train ...`, `hnetcl evaluate ...`, `hnetcl export ...` and `hnetcl report ...`.

`python -m hnetcl` and the files in scripts/ are the same.
"""

import sys

from omegaconf import DictConfig

from hnetcl.cli.call import Call
from hnetcl.cli.main import USAGE_ERROR, run
from hnetcl.cli.plain import typed_config, typed_evaluation, typed_export
from hnetcl.errors import one_of

USAGE = """usage: hnetcl COMMAND ...

  hnetcl train task=split_mnist bn=quaternion    trains on a sequence of tasks
  hnetcl evaluate run=DIR                        evaluates a finished run
  hnetcl export run=DIR task=K                   a task's network as files that need no hnetcl
  hnetcl report DIR ...                          tables and figures of all runs in some folders

`hnetcl COMMAND --help` lists the keys."""


def train() -> None:
    """Trains a hypernetwork on a sequence of tasks."""
    run("config", _train)


def evaluate() -> None:
    """Evaluates a finished run from its directory."""
    run("evaluate", _evaluate)


def export() -> None:
    """Writes tasks' networks of a finished run as files that need no hnetcl."""
    run("export", _export)


def report() -> None:
    """Tables and figures of runs."""
    from hnetcl.cli.report import report as made

    made(sys.argv[1:])


COMMANDS = {"train": train, "evaluate": evaluate, "export": export, "report": report}


def main() -> None:
    """What is called as `hnetcl`: the first word says which command it is."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(USAGE)
        return
    if name not in COMMANDS:
        print(one_of("command", name, COMMANDS), file=sys.stderr)
        sys.exit(USAGE_ERROR)
    del sys.argv[1]
    COMMANDS[name]()


def _train(composed: DictConfig, call: Call) -> float:
    config = typed_config(composed, call.overrides)
    from hnetcl.cli.jobs import metric, train  # torch is imported only once the configuration is good

    return metric(train(config, call), config.optimized_metric)


def _evaluate(composed: DictConfig, call: Call) -> float:
    arguments = typed_evaluation(composed)
    from hnetcl.cli.jobs import evaluate

    found = evaluate(arguments)
    return sum(found) / len(found)


def _export(composed: DictConfig, call: Call) -> None:
    arguments = typed_export(composed)
    from hnetcl.cli.export import export

    export(arguments)
