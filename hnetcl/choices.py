"""The fixed sets of names that users choose from. Free of torch, so that the command line answers at once."""

ALGEBRA_DIMS = {"real": 1, "complex": 2, "quaternion": 4}
STATS = ("tracked", "learnable", "frozen", "batch", "generated", "distilled")
WHITENINGS = ("zca", "cholesky", "naive")
BACKENDS = ("auto", "reference", "closed_form", "compiled")
SHARED = ("trained", "trained_once", "fixed")
CLASS_ORDERS = ("natural", "random")
SCENARIOS = ("task", "domain", "class")
INFERENCES = ("entropy", "confidence", "agreement")
SCHEDULES = ("constant", "cosine")
TARGETS = ("stored", "online")
COMPILES = ("auto", "on", "off")
PRECISIONS = ("float32", "bfloat16")
OPTIMIZERS = ("adagrad", "adam", "adamw", "rmsprop", "sgd")
