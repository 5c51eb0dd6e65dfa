"""Run a Python program with at most so much memory: what wants more fails, and takes nothing else down with it.

    python bounded.py BYTES PROGRAM.py ARGUMENTS...

Needs only Python 3.8. Where the system knows no such limit, there is none.
"""

from __future__ import annotations

import contextlib
import runpy
import sys


def main(most: int) -> None:
    """Set the limit and become the program."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # there is a lower one, or none at all
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    wanted = int(sys.argv[1])
    sys.argv = sys.argv[2:]
    main(wanted)
