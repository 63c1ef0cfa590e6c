"""Fine-tuning: nothing is done about forgetting. The lower baseline."""

from hnetcl.methods.base import Method
from hnetcl.registry import register


@register("method", "finetune")
class Finetune(Method):
    """Trains on the current task alone."""
