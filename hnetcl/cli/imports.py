"""Users' own parts: the modules named in `imports=[...]`, which register them.

Only what the user types now is imported, never what a saved run names.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb

from hnetcl.errors import ArgumentError, one_line
from hnetcl.registry import PACKAGE

MODULE = "imported from "  # and its path: the name of an imported file's module


def import_all(names: Sequence[str]) -> None:
    """Imports modules, once per process.

    Args:
        names: of importable modules, those in the current directory among them; or paths of files that end in .py.

    Raises:
        ArgumentError: one can't be imported.
    """
    for name in names:
        try:
            if name.endswith(".py"):
                _import_file(Path(name).absolute())
            else:
                _add_to_path(Path.cwd())
                import_module(name)
        except (Exception, SystemExit) as error:  # a user's module may raise anything
            frames = extract_tb(error.__traceback__)
            last = next((frame for frame in reversed(frames) if not Path(frame.filename).is_relative_to(PACKAGE)), frames[-1])
            where = (
                f" ({last.filename}, line {last.lineno})" if not isinstance(error, ImportError | SyntaxError | OSError) else ""
            )
            raise ArgumentError("imports", list(names), f"{name}: {type(error).__name__}: {one_line(error)}{where}") from error


def _import_file(path: Path) -> None:
    """Like `python FILE` its neighbours are importable; under a name of its own it hides no other module."""
    name = f"{MODULE}{path}"
    if name in sys.modules:
        return
    folders = {Path(other.removeprefix(MODULE)).parent for other in sys.modules if other.startswith(MODULE)}
    for neighbour in path.parent.glob("*.py"):
        loaded = getattr(sys.modules.get(neighbour.stem), "__file__", None)
        if loaded and Path(loaded) != neighbour and Path(loaded).parent in folders:
            raise ImportError(f"its neighbour {neighbour.name} is hidden by {loaded}, which is imported; give one another name")
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    _add_to_path(path.parent)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _add_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
