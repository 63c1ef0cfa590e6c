"""What is done about forgetting."""

from hnetcl.methods.base import Draw, Inputs, Losses, Method, Run
from hnetcl.methods.finetune import Finetune
from hnetcl.methods.fisher import fisher_information
from hnetcl.methods.joint import Joint
from hnetcl.methods.lookahead import Lookahead, evaluate
from hnetcl.methods.masks import head_masks
from hnetcl.methods.output_regularizer import OutputRegularizer

__all__ = [
    "Draw",
    "Finetune",
    "Inputs",
    "Joint",
    "Lookahead",
    "Losses",
    "Method",
    "OutputRegularizer",
    "Run",
    "evaluate",
    "fisher_information",
    "head_masks",
]
