"""An older x86 processor, at the speed of this one: ONNX Runtime is told of fewer instruction sets than there are.

What is masked is what the library sees, so this proves which kernels an older processor chooses and what they answer,
not that none of their instructions is missing there. Processors can only be made to look older.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from onnxopt.errors import TargetError
from onnxopt.runtime.exchange import Answer, Job
from onnxopt.runtime.local import Launch, run_in_child
from onnxopt.runtime.machine import instructions
from onnxopt.runtime.target import Target
from onnxopt.targets import cpuid, mask
from onnxopt.targets.folders import cache_folder
from onnxopt.targets.way import Unavailable

# CPUID bits by what they stand for (Intel SDM 2A, CPUID; AMD APM 3, appendix E): leaf.subleaf.register:bit, ...
_AMX = "7.0.d:22,7.0.d:24,7.0.d:25,7.1.a:21,7.1.d:8"
_VNNI512 = "7.0.c:11,7.1.a:5,7.0.d:23"
_VNNI256 = "7.1.a:4,7.1.a:23,7.1.d:4,7.1.d:5,7.1.d:10,7.1.d:19"
_AVX512 = ",".join(
    [f"7.0.b:{b}" for b in (16, 17, 21, 26, 27, 28, 30, 31)]
    + [f"7.0.c:{b}" for b in (1, 6, 11, 12, 14)]
    + [f"7.0.d:{b}" for b in (2, 3, 8, 23)]
    + ["7.1.a:5"]
)
_AVX2 = "7.0.b:5,1.0.c:12,1.0.c:29"
_AVX = "1.0.c:26,1.0.c:27,1.0.c:28"
_HIDDEN = {
    "x86-64-avx512vnni": (_AMX,),
    "x86-64-avx512": (_AMX, _VNNI512, _VNNI256),
    "x86-64-avx2vnni": (_AMX, _AVX512),
    "x86-64-avx2": (_AMX, _AVX512, _VNNI256),
    "x86-64-avx": (_AMX, _AVX512, _VNNI256, _AVX2),
    "x86-64-sse42": (_AMX, _AVX512, _VNNI256, _AVX2, _AVX),
}


@dataclass(frozen=True)
class Masked:
    """This processor with some of its instruction sets hidden."""

    target: Target
    timed: bool = True
    slowdown: float = 4
    slowdown_int8: float = 8

    @property
    def how(self) -> str:
        """In words."""
        return "natively, newer instructions masked"

    def run(self, job: Job) -> Answer:
        """Run a job. Raises ExecutionError, and TargetError where ONNX Runtime's library cannot be masked."""
        bits = ",".join(_HIDDEN[self.target.name])
        command = (sys.executable, "-I", mask.__file__, str(_changed_library()), bits)
        return run_in_child(job, Launch(command=command, where=f"on {self.target.name}"))


def find_mask(target: Target) -> Masked | Unavailable:
    """How to show this processor as that target, or why that is not possible."""
    if sys.platform != "linux":
        return Unavailable("instruction sets can be masked on Linux only", "")
    if missing := [name for name in target.instructions if name not in instructions()]:
        return Unavailable(f"this processor has no {missing[0]}, and masking can only take away", "")
    if find_spec("capstone") is None:
        return Unavailable("masking needs capstone", "pip install capstone")
    return Masked(target)


def _changed_library() -> Path:
    """A copy of ONNX Runtime's extension module whose CPUID instructions trap; made once for each build of it."""
    spec = find_spec(mask.MODULE)
    if spec is None or spec.origin is None:
        raise TargetError("ONNX Runtime's library cannot be found: install onnxruntime again")
    original = Path(spec.origin)
    stat = original.stat()
    key = hashlib.sha256(f"1 {original} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache_folder() / "masked" / key
    changed = folder / original.name
    if changed.exists():
        return changed
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
        for beside in original.parent.glob("*.so*"):  # it looks for its providers beside itself
            if beside != original:
                os.symlink(beside, making / beside.name)
        os.rename(making, folder)
    except OSError:
        if not changed.exists():  # another process may have been quicker
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return changed
