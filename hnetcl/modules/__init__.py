"""What holds for any module: its parameters' places, its buffers and caches, recomputation, its outputs."""

from hnetcl.modules.buffers import TaskBuffers
from hnetcl.modules.caches import Caches
from hnetcl.modules.held import Held, held
from hnetcl.modules.outputs import as_arguments, auxiliary_logits, device_of, main_logits, to_float
from hnetcl.modules.places import all_modules, buffer_places, owner, parameter_places, placed
from hnetcl.modules.recompute import recomputed_within
from hnetcl.modules.tensors import copied, fill
from hnetcl.modules.writable import require_known, require_writable

__all__ = [
    "Caches",
    "Held",
    "TaskBuffers",
    "all_modules",
    "as_arguments",
    "auxiliary_logits",
    "buffer_places",
    "copied",
    "device_of",
    "fill",
    "held",
    "main_logits",
    "owner",
    "parameter_places",
    "placed",
    "recomputed_within",
    "require_known",
    "require_writable",
    "to_float",
]
