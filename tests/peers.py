"""Outside libraries that build on torchvision, where they are installed."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

from hnetcl.vision import import_torchvision


def peer(name: str) -> Any:
    """A module of such a library. Where there is none, the test is skipped before seconds go into importing torchvision."""
    library = name.partition(".")[0]
    if find_spec(library) is None:
        pytest.skip(f"needs {library}")
    import_torchvision()
    return import_module(name)
