"""Another processor in emulation: QEMU's user mode runs a Python and an ONNX Runtime of the target's architecture.

The instructions that the processor lacks are missing there too: a kernel that needs them ends with SIGILL.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace

from onnxopt.runtime import session
from onnxopt.runtime.exchange import Answer, Job
from onnxopt.runtime.local import Launch, run_in_child
from onnxopt.runtime.machine import architecture
from onnxopt.runtime.target import Target
from onnxopt.targets.environment import read_environment
from onnxopt.targets.folders import arm64_folder
from onnxopt.targets.way import Unavailable

# Idle workers that spin take the emulator's time from those that work.
_SETTINGS = {"session.intra_op.allow_spinning": "0"}
# The first version that has AVX2, without which its Haswell would choose other kernels than a real one.
_AVX2_SINCE = (7, 2)
_SET_UP = "run 'onnxopt targets setup arm64'"
_ELSEWHERE = Unavailable("it can be emulated on Linux on x86-64 only", "use a real device, ssh://user@host")


@dataclass(frozen=True)
class Emulated:
    """``command`` is the emulator with its options and the Python that it runs; ``packages``: where that finds ONNX
    Runtime, None where it is the Python at hand."""

    target: Target
    command: tuple[str, ...]
    version: str
    packages: tuple[str, ...] | None = None
    timed: bool = False
    # Measured on two machines: float 320 to 850 times (on x86, with old versions of QEMU, 4000), integers 60 to 740.
    slowdown: float = 1500
    slowdown_int8: float = 1500

    @property
    def how(self) -> str:
        """In words."""
        return f"emulated by QEMU {self.version} as {self.target.cpu}"

    def run(self, job: Job) -> Answer:
        """Run a job. Raises ExecutionError."""
        job = replace(job, settings={**_SETTINGS, **job.settings})
        launch = Launch(command=(*self.command, "-I"), where=f"on {self.target.name}")
        return run_in_child(job, launch if self.packages is None else replace(launch, packages=self.packages))


def find_emulator(target: Target) -> Emulated | Unavailable:
    """How to emulate a target, or why that is not possible."""
    if sys.platform != "linux" or architecture() != "x86-64":
        return _ELSEWHERE
    return _find_arm64(target) if target.architecture == "arm64" else _find_x86(target)


def _find_arm64(target: Target) -> Emulated | Unavailable:
    there = read_environment(arm64_folder())
    if there is None:
        return Unavailable("it is not set up on this machine", _SET_UP)
    if there.onnxruntime != session.__version__:
        why = f"it was set up with ONNX Runtime {there.onnxruntime}, and here is {session.__version__}"
        return Unavailable(why, f"{_SET_UP} again")
    # Libraries of this machine are of no use there.
    options = ("-U", "LD_LIBRARY_PATH", "-cpu", str(target.cpu), "-L", there.sysroot)
    command = (there.qemu, *options, there.python)
    return Emulated(target, command, there.qemu_version, (there.site,))


def _find_x86(target: Target) -> Emulated | Unavailable:
    """The Python at hand runs on a processor that has less, or more, than this one."""
    if target.cpu is None:
        return Unavailable("QEMU has no such processor", "")
    beside = arm64_folder() / "bin" / "qemu-x86_64"
    found = str(beside) if beside.is_file() else shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if found is None:
        return Unavailable("there is no qemu-x86_64", "install your system's package qemu-user")
    version = qemu_version(found)
    if version is None:
        return Unavailable(f"{found} does not say which version it is", "install your system's package qemu-user")
    if tuple(map(int, version.split(".")[:2])) < _AVX2_SINCE:
        return Unavailable(f"QEMU {version} has no AVX2", "install QEMU 7.2 or newer")
    return Emulated(target, (found, "-cpu", target.cpu, sys.executable), version, slowdown=5000)


def qemu_version(emulator: str) -> str | None:
    """What an emulator says its version is, "10.0.13"; None where it does not."""
    try:
        said = subprocess.run([emulator, "--version"], capture_output=True, timeout=10, stdin=subprocess.DEVNULL).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(rb"version (\d+\.\d+(?:\.\d+)?)", said)
    return match[1].decode() if match else None
