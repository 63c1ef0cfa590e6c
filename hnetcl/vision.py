"""`torchvision`, importable beside a torch that was built without CUDA too.

Its wheel for CUDA can't load its compiled operators there, and then fails at import where it describes them to the compiler
("operator torchvision::nms does not exist"). Declaring the operators lets it load; they are never called here.
"""

import re
import sys
from importlib import import_module
from types import ModuleType

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[torch.library.Library] = []  # an operator lives as long as the library that declared it


def import_torchvision() -> ModuleType:
    """The module `torchvision`, with `datasets` and `models` loaded.

    Raises:
        ImportError, RuntimeError: as the import does, for any other cause.
    """
    for _ in range(len(_SCHEMAS) + 1):
        try:
            return import_module("torchvision")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None or missing[1] not in _SCHEMAS:
                raise
            # Declared only now: where the real operators exist, declaring them again aborts the process.
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(_SCHEMAS[missing[1]])
            _libraries.append(library)
    raise ImportError("torchvision still misses operators after they were declared")
