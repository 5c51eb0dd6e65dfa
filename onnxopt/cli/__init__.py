"""The command line: parse, call, print, exit code. It holds no logic of its own."""

import os

# One thread for linear algebra, unless the user says otherwise. On a machine with other work, OpenBLAS's threads wait
# for one another by spinning, which costs more than they save. It must be said before numpy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from onnxopt.cli.main import main

__all__ = ["main"]
