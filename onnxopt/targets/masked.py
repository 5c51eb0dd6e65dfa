"""An older x86 processor, at the speed of this one: ONNX Runtime is told of fewer instruction sets than there are.

What is masked is what the library sees, so this proves which kernels an older processor chooses and what they answer,
not that none of their instructions is missing there. Processors can only be made to look older.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from onnxopt.errors import TargetError
from onnxopt.runtime.exchange import Answer, Job
from onnxopt.runtime.local import Launch, call
from onnxopt.runtime.machine import architecture, instructions
from onnxopt.runtime.target import Target
from onnxopt.targets import cpuid, mask
from onnxopt.targets.folders import cache_folder
from onnxopt.targets.way import Unavailable

# CPUID bits by what they stand for (Intel SDM 2A, CPUID; AMD APM 3, appendix E): leaf.subleaf.register:bit, ...
_AMX = "7.0.d:22,7.0.d:24,7.0.d:25,7.1.a:21,7.1.d:8"
_VNNI512 = "7.0.c:11,7.1.a:5,7.0.d:23"  # and bfloat16 and float16, which are younger still
_VNNI256 = "7.1.a:4,7.1.a:23,7.1.d:4,7.1.d:5,7.1.d:10"
_AVX10 = "7.1.d:19"
_AVX512 = ",".join(
    [f"7.0.b:{b}" for b in (16, 17, 21, 26, 27, 28, 30, 31)]
    + [f"7.0.c:{b}" for b in (1, 6, 11, 12, 14)]
    + [f"7.0.d:{b}" for b in (2, 3, 8, 23)]
    + ["7.1.a:5"]
)
_AVX2 = "7.0.b:5,1.0.c:12,1.0.c:29,7.0.b:3,7.0.b:8,7.0.c:9,7.0.c:10"  # and FMA, F16C, BMI, VAES, VPCLMULQDQ
_AVX = "1.0.c:26,1.0.c:27,1.0.c:28,0x80000001.0.c:11,0x80000001.0.c:16"  # and XSAVE, XOP, FMA4
_HIDDEN = {
    "x86-64-avx512vnni": ("AMX", (_AMX, _AVX10)),
    "x86-64-avx512": ("VNNI and AMX", (_AMX, _AVX10, _VNNI512, _VNNI256)),
    "x86-64-avx2vnni": ("AVX-512 and AMX", (_AMX, _AVX10, _AVX512)),
    "x86-64-avx2": ("AVX-512, VNNI and AMX", (_AMX, _AVX10, _AVX512, _VNNI256)),
    "x86-64-avx": ("AVX2 and what came after it", (_AMX, _AVX10, _AVX512, _VNNI256, _AVX2)),
    "x86-64-sse42": ("AVX and what came after it", (_AMX, _AVX10, _AVX512, _VNNI256, _AVX2, _AVX)),
}
# In the folder of a changed copy, a link to what it is a copy of.
_ORIGINAL = "original"
# How a copy is made: part of its name, so that another onnxopt does not take it for its own.
_RECIPE = 2
_ABANDONED_S = 3600


@dataclass(frozen=True)
class Masked:
    """This processor with some of its instruction sets hidden. ``library`` is the changed copy of ONNX Runtime's."""

    target: Target
    library: Path
    timed: bool = True
    slowdown: float = 6
    slowdown_int8: float = 15

    @property
    def how(self) -> str:
        """In words."""
        return f"natively, {_HIDDEN[self.target.name][0]} hidden"

    def run(self, job: Job) -> Answer:
        """Run a job. Raises ExecutionError; TargetError where ONNX Runtime did not ask what it was to be told."""
        bits = ",".join(_HIDDEN[self.target.name][1])
        command = (sys.executable, "-I", mask.__file__, str(self.library), bits)
        there = call(job, Launch(command=command, where=f"on {self.target.name}"))
        if not re.search(r"^masked [1-9]\d*$", there.stderr, re.MULTILINE):
            raise TargetError("nothing was masked: this build of ONNX Runtime loads its kernels from another library")
        return there.answer


def find_mask(target: Target) -> Masked | Unavailable:
    """How to show this processor as that target, or why that is not possible."""
    if sys.platform != "linux" or architecture() != "x86-64":
        return Unavailable("instruction sets can be masked on Linux on x86-64 only", "")
    if missing := [name for name in target.instructions if name not in instructions()]:
        return Unavailable(f"this processor has no {missing[0]}, and masking can only take away", "")
    if find_spec("capstone") is None:
        return Unavailable("masking needs capstone", "pip install capstone")
    try:
        return Masked(target, changed_library())
    except TargetError as error:
        return Unavailable.because(error)


def changed_library() -> Path:
    """A copy of ONNX Runtime's extension module whose CPUID instructions trap; made once for each build of it.

    Copies of builds that are no longer there are removed. Raises TargetError where none can be made.
    """
    spec = find_spec(mask.MODULE)
    if spec is None or spec.origin is None:
        raise TargetError("ONNX Runtime's library cannot be found; install onnxruntime again")
    original = Path(spec.origin)
    parent = cache_folder("masked")
    try:
        folder = parent / _key(original)
        changed = folder / original.name
        if not changed.exists():
            _make(original, folder)
            _clear(parent, original, folder)
    except OSError as error:
        raise TargetError(
            f"cannot keep a changed copy of ONNX Runtime in {parent}: {error.strerror}; "
            "set XDG_CACHE_HOME to a folder that has 40 MB of room"
        ) from error
    return changed


def _key(original: Path) -> str:
    """A name for this very file: another build in its place has another."""
    stat = original.stat()
    text = f"{_RECIPE} {original} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _make(original: Path, folder: Path) -> None:
    program = bytearray(original.read_bytes())
    places = cpuid.offsets(bytes(program))
    if not places:
        raise TargetError("ONNX Runtime's library has no CPUID instructions to mask")
    for place in places:
        program[place : place + len(mask.TRAP)] = mask.TRAP
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        (making / original.name).write_bytes(program)
        (making / _ORIGINAL).symlink_to(original)
        for beside in original.parent.glob("*.so*"):  # it looks for its providers beside itself
            if beside != original:
                (making / beside.name).symlink_to(beside)
        os.rename(making, folder)
    except OSError:
        if not (folder / original.name).exists():  # another process may have been quicker
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _clear(parent: Path, original: Path, keep: Path) -> None:
    """Remove copies of what is no longer there, and what was begun and left."""
    for folder in parent.iterdir():
        source = folder / _ORIGINAL
        with suppress(OSError):  # somebody else may be clearing too
            if folder.name.startswith("."):
                stale = time.time() - folder.stat().st_mtime > _ABANDONED_S
            else:
                stale = folder != keep and (not source.exists() or os.readlink(source) == str(original))
            if stale:
                shutil.rmtree(folder, ignore_errors=True)
