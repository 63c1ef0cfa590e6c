"""How much parameters, and what is generated for a task, matter to what it predicts."""

from hnetcl.importance.fisher import fisher_information, parameter_fisher, require_labels, require_samples
from hnetcl.importance.gradients import SampleGradients
from hnetcl.importance.masks import head_masks
from hnetcl.importance.outputs import Importance

__all__ = [
    "Importance",
    "SampleGradients",
    "fisher_information",
    "head_masks",
    "parameter_fisher",
    "require_labels",
    "require_samples",
]
