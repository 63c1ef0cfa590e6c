"""The fixed sets of names that users choose from. Free of torch, so that the command line answers at once."""

from typing import get_args

from hnetcl.registry import declared_options

ALGEBRA_DIMS = {"real": 1, "complex": 2, "quaternion": 4}
STATS: tuple[str, ...] = get_args(declared_options("hnetcl.bn.layer", "BatchNormLayer")["stats"].type)
WHITENINGS = ("zca", "cholesky", "naive")
BACKENDS = ("auto", "reference", "closed_form", "compiled")
NORMS = ("batch", "none")
SHARED = ("trained", "trained_once", "fixed")
INITS = ("own", "fan_in", "fan_out", "given")
CLASS_ORDERS = ("natural", "random")
SCENARIOS = ("task", "domain", "class")
INFERENCES = ("entropy", "confidence", "agreement")
SCHEDULES = ("constant", "cosine")
ACTIVATIONS = ("relu", "elu")
HEAD_SCALES = ("unit", "own")
TARGETS = ("stored", "online")
TARGET_DTYPES = ("float32", "bfloat16", "float16", "float64")
TARGET_DEVICES = ("cpu",)
IMPORTANCES = ("none", "fisher")
COMPILES = ("auto", "on", "off")
EVALUATED = ("seen", "all", "last")
REPORTS = ("each", "last", "none")
PRECISIONS = ("float32", "bfloat16")
OPTIMIZERS = ("adagrad", "adam", "adamw", "rmsprop", "sgd")
METRICS = ("average_accuracy", "forgetting", "bwt", "fwt", "average_incremental_accuracy")
AT_THE_END = ("average_accuracy", "bwt")  # metrics of each task's accuracy right after its training, and at the end
INFERENCE_METRICS = ("task_aware", "task_agnostic", "task_inference_accuracy")  # where the task is not told
COSTS = ("compression", "seconds", "steps_per_second")
OBSERVERS = ("progress", "tensorboard", "figures")
