"""How much memory a command takes, with all the processes that it starts."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PAUSE_S = 0.1


@dataclass(frozen=True)
class Used:
    """``peak_bytes``: the most that its processes held at one time, by Linux's proportional set size: pages that some
    share, and those of mapped files, count once."""

    exit: int
    peak_bytes: int
    seconds: float


def run(command: Sequence[str]) -> Used:
    """Runs a command to its end, looking ten times a second."""
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(_held, _family(process.pid))))
            time.sleep(_PAUSE_S)
    return Used(process.returncode, peak, time.perf_counter() - started)


def _family(root: int) -> list[int]:
    """A process and all that it started."""
    found = [root]
    for pid in found:
        try:
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            found += [int(child) for task in tasks for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def _held(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
