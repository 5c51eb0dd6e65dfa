"""Which way leads to a target from this machine, if any."""

from __future__ import annotations

from collections.abc import Iterable

from onnxopt.errors import TargetError
from onnxopt.runtime import session
from onnxopt.runtime.target import Target
from onnxopt.targets.emulated import find_emulator
from onnxopt.targets.masked import find_mask
from onnxopt.targets.native import Native
from onnxopt.targets.remote import Device
from onnxopt.targets.spec import Wanted
from onnxopt.targets.way import Unavailable, Way


def find_way(wanted: Wanted) -> Way | Unavailable:
    """How to run models on a target from here, or why not. No model is run, and nothing fetched, to find that out."""
    try:
        return _way(wanted)
    except TargetError as error:
        return Unavailable.because(error)


def _way(wanted: Wanted) -> Way | Unavailable:
    if wanted.address is not None:
        return Device(wanted.address)
    if wanted.provider is not None:
        if wanted.provider not in session.providers():
            why = f"the installed ONNX Runtime {session.__version__} has no {wanted.provider}"
            return Unavailable(why, "install a build that has it")
        return Native(wanted.provider, f"natively, {wanted.provider} first")
    if wanted.target.architecture is None:
        return Native()
    if wanted.target.architecture == "x86-64":
        return _older_x86(wanted.target)
    return find_emulator(wanted.target)


def _older_x86(target: Target) -> Way | Unavailable:
    """Masked, which is as fast as this machine; in emulation where that is not possible."""
    masked = find_mask(target)
    if not isinstance(masked, Unavailable):
        return masked
    emulated = find_emulator(target)
    if not isinstance(emulated, Unavailable):
        return emulated
    remedies = " or ".join(filter(None, (masked.remedy, emulated.remedy)))
    return Unavailable(f"{masked.why}; to emulate it, {emulated.why}", remedies)


def require(targets: Iterable[Wanted]) -> None:
    """Raises TargetError for the first target that cannot be run from here."""
    for wanted in targets:
        way = find_way(wanted)
        if isinstance(way, Unavailable):
            raise TargetError(f"the target '{wanted.name}' is required, but not available: {way}")
