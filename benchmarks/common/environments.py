"""One virtual environment for each peer, built once and used again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# No tool here needs a graphics card; what comes with one is gigabytes. torch's CPU build does.
_BARRED = ("triton", "cupy-cuda12x", "onnxruntime-gpu", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")


class InstallError(Exception):
    """Why a peer is not there, in one line."""


def python_of(name: str, packages: Sequence[str], folder: Path) -> Path:
    """The interpreter of an environment that holds these packages. Raises InstallError."""
    place = folder / name
    stamp, python = place / "packages.txt", place / "bin" / "python"
    wanted = "\n".join(packages)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    _call([sys.executable, "-m", "venv", "--clear", str(place)])
    constraints = place / "constraints.txt"
    constraints.write_text("".join(f"{package}<0\n" for package in _BARRED), encoding="utf-8")
    _call([str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints), *packages])
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("ERROR")]
        raise InstallError(f"does not install here: {(lines or ['pip failed'])[0].removeprefix('ERROR: ')[:200]}")
