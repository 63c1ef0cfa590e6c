"""Processes to be killed, and how often: `HNETCL_FAULTS=4` makes all long tests four times as thorough."""

import os
from collections.abc import Iterator

import pytest

from faults.processes import Jobs

THOROUGH = float(os.environ.get("HNETCL_FAULTS", "1"))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """The command line."""
    server = Jobs(tmp_path_factory.mktemp("jobs"))
    yield server
    server.close()
