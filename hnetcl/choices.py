"""The fixed sets of names that users choose from. Free of torch, so that the command line answers at once."""

ALGEBRA_DIMS = {"real": 1, "complex": 2, "quaternion": 4}
STATS = ("tracked", "learnable", "frozen", "batch", "generated", "distilled")
WHITENINGS = ("zca", "cholesky", "naive")
BACKENDS = ("auto", "reference", "closed_form", "compiled")
NORMS = ("batch", "none")
SHARED = ("trained", "trained_once", "fixed")
INITS = ("own", "fan_in", "fan_out")
CLASS_ORDERS = ("natural", "random")
SCENARIOS = ("task", "domain", "class")
INFERENCES = ("entropy", "confidence", "agreement")
SCHEDULES = ("constant", "cosine")
TARGETS = ("stored", "online")
TARGET_DTYPES = ("float32", "bfloat16", "float16", "float64")
TARGET_DEVICES = ("cpu",)
IMPORTANCES = ("none", "fisher")
OPTIMIZERS = ("adagrad", "adam", "adamw", "rmsprop", "sgd")
