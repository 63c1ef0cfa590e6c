"""Runs commands one after the other, each in a process of its own that starts with torch imported: seconds saved for each.

Reads `[[directory, [script, argument, ...]], ...]` from stdin as JSON, and writes `[[exit code, output], ...]` to the file that
is its argument. A script runs as `python SCRIPT ARGUMENTS` runs it: as `__main__`, with the command line in `sys`.
"""

import io
import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

import matplotlib.pyplot  # what takes long to import
import torch.utils.tensorboard

import hnetcl.tracking  # noqa: F401
from hnetcl.vision import import_torchvision


def run(directory: str, words: list[str]) -> tuple[int, str]:
    """Exit code and output."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.chdir(directory)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.argv, sys.orig_argv = words, [sys.executable, *words]
            sys.path[0] = str(Path(words[0]).parent)
            os._exit(exit_code(words[0]))
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode()


def exit_code(script: str) -> int:
    """Of a script that runs to its end in this process."""
    try:
        runpy.run_path(script, run_name="__main__")
        code: object = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 1


if __name__ == "__main__":
    import_torchvision()
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first optimizer of a process imports torch's compiler
    matplotlib.pyplot.figure().savefig(io.BytesIO())  # reads its fonts
    results = [run(directory, words) for directory, words in json.load(sys.stdin)]
    Path(sys.argv[1]).write_text(json.dumps(results), encoding="utf-8")
