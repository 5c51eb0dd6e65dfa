"""What ``onnxopt targets setup arm64`` left in its folder: ``environment.json`` says what and where."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Environment:
    """Paths are absolute: the emulator, the system's root, Python in it, its packages. Versions: what is there."""

    qemu: str
    qemu_version: str
    sysroot: str
    python: str
    site: str
    onnxruntime: str
    numpy: str


def read_environment(folder: Path) -> Environment | None:
    """What lies in a folder; None where nothing is set up, or not whole.

    Its file has qemu (a path, absolute or from the folder), qemu_version, python (a path in the folder's ``sysroot``),
    onnxruntime and numpy (versions in the folder's ``site``).
    """
    try:
        said = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        sysroot, site = folder / "sysroot", folder / "site"
        found = Environment(
            qemu=str(folder / said["qemu"]),
            qemu_version=str(said["qemu_version"] or "of an unknown version"),
            sysroot=str(sysroot),
            python=str(sysroot / str(said["python"]).lstrip("/")),
            site=str(site),
            onnxruntime=str(said["onnxruntime"]),
            numpy=str(said["numpy"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = Path(found.qemu).is_file() and Path(found.python).exists() and site.is_dir()
    return found if whole else None
