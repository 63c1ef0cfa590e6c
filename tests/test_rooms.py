"""The rooms of the package: each imports only from those above it."""

import ast
from pathlib import Path

import pytest

import hnetcl

PACKAGE = Path(hnetcl.__file__).parent
ROOMS = [
    "errors",
    "files",
    "values",
    "registry",
    "config",
    "patterns",
    "modes",
    "memory",
    "vision",
    "algebra",
    "numbers",
    "compiling",
    "kernels",
    "modules",
    "layers",
    "bn",
    "nets",
    "hnets",
    "tasks",
    "model",
    "wrapping",
    "exporting",
    "inference",
    "importance",
    "lookahead",
    "methods",
    "metrics",
    "training",
    "tracking",
    "build",
    "reporting",
    "cli",
    "__main__",
]
MAY_KNOW_HYDRA = {"cli"}
MAY_KNOW_SCREENS = {"tracking", "reporting"}
MAY_SERVE_KERNELS = {"kernels", "compiling"}  # kernels are pure functions of tensors
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_room_is_listed() -> None:
    assert {room(path) for path in FILES} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_from_rooms_above(path: Path) -> None:
    used = {module.split(".")[1] for module in imports(path) if module.startswith("hnetcl.")}
    allowed = set(ROOMS[: ROOMS.index(room(path)) + 1])
    assert used <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_outside_libraries_stay_in_their_rooms(path: Path) -> None:
    used = {module.split(".")[0] for module in imports(path)}
    assert room(path) in MAY_KNOW_HYDRA or not used & {"hydra", "omegaconf"}
    assert room(path) in MAY_KNOW_SCREENS or not used & {"rich", "matplotlib", "tensorboard"}
    assert room(path) != "kernels" or not {
        m for m in imports(path) if m.startswith("hnetcl.") and m.split(".")[1] not in MAY_SERVE_KERNELS
    }


def test_no_file_imports_another_in_a_circle() -> None:
    graph = {}
    for path in FILES:
        name = ".".join(("hnetcl", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        graph[name] = imports(path)
    modules = set(graph)
    edges = {
        name: {target for i in used for target in (i, i.rpartition(".")[0]) if target in modules and target != name}
        for name, used in graph.items()
    }
    done: set[str] = set()
    while len(done) < len(edges):
        ready = {name for name, targets in edges.items() if name not in done and targets <= done}
        assert ready, f"circular imports among {sorted(set(edges) - done)}"
        done |= ready


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350
