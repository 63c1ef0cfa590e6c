"""Measures time and memory of parts side by side: python scripts/benchmark.py bn --shape 64,64,32,32

`--help` lists the subjects, `bn --help` what can be said of one.
"""

import os

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the profiler warns of memory that is older than itself

from benchmarks.command import main

if __name__ == "__main__":
    main()
