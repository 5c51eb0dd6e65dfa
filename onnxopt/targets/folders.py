"""Where what targets need is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/onnxopt``, or ``~/.cache/onnxopt``; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "onnxopt"


def arm64_folder() -> Path:
    """Where ``onnxopt targets setup arm64`` puts an emulator (bin), a system (sysroot) and Python packages (site)."""
    return cache_folder() / "targets" / "arm64"
