"""What can be set up, by its name: ``arm64``, and versions of ONNX Runtime such as ``ort-1.16``."""

from __future__ import annotations

from collections.abc import Callable

from onnxopt.environments import arm64, runtimes
from onnxopt.environments.source import Source
from onnxopt.errors import SpecError
from onnxopt.progress import Track
from onnxopt.spelling import nearest
from onnxopt.targets.runtimes import parse_version

ARM64, ORT = "arm64", "ort-"


def plan(name: str, source: Source) -> list[str]:
    """What would be done, in lines; nothing is fetched. Raises SpecError, TargetError."""
    version = _version(name)
    if version is not None:
        return runtimes.plan(version, source)
    there = arm64.current() if source.keep is None else None
    return arm64.plan(source) if there is None else [f"it is set up already: {there}"]


def set_up(name: str, source: Source, say: Callable[[str], None], track: Track) -> str:
    """Do it; one line about what is there then. Raises SpecError, TargetError."""
    version = _version(name)
    if version is None:
        return arm64.set_up(source, say, track)
    return runtimes.set_up(version, source, say, track)


def _version(name: str) -> str | None:
    """The version of ONNX Runtime that is meant, None for ARM. Raises SpecError."""
    if name == ARM64:
        return None
    if not name.startswith(ORT):
        raise SpecError(f"'{name}' is nothing to set up{nearest(name, (ARM64,))}: name arm64, or ort-1.16 or the like")
    return parse_version(name.removeprefix(ORT))
