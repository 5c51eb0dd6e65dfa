"""Where what targets need is kept between runs."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from onnxopt.errors import TargetError


def cache_folder(*names: str) -> Path:
    """A folder in ``$XDG_CACHE_HOME/onnxopt``, or ``~/.cache/onnxopt``; it need not exist.

    Programs are run from there: raises TargetError where another user could change them.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "onnxopt"
    _check(folder)
    for name in names:
        folder /= name
        _check(folder)
    return folder


def arm64_folder() -> Path:
    """Where ``onnxopt targets setup arm64`` puts an emulator (bin), a system (sysroot) and Python packages (site)."""
    return cache_folder("targets", "arm64")


def _check(folder: Path) -> None:
    if not hasattr(os, "geteuid"):  # Windows, where folders of users are their own
        return
    with suppress(OSError):
        found = folder.stat()
        if found.st_uid not in (os.geteuid(), 0) or found.st_mode & stat.S_IWOTH:
            raise TargetError(
                f"another user can change what lies in {folder}, and it would be run; "
                "set XDG_CACHE_HOME to a folder that is yours alone"
            )
