"""The fixed sets of names that users choose from. Free of torch, so that the command line answers at once."""

ALGEBRA_DIMS = {"real": 1, "complex": 2, "quaternion": 4}
STATS = ("tracked", "learnable", "frozen", "batch", "generated", "distilled")
WHITENINGS = ("zca", "cholesky", "naive")
BACKENDS = ("auto", "reference", "closed_form", "compiled")
INITS = ("own", "fan_in", "fan_out", "given")
