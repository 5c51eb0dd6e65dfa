"""Tests run on all cores already: more threads for linear algebra would only wait for each other."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported
