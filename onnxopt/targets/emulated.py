"""Another processor in emulation: QEMU's user mode runs the target's own Python and ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxopt.runtime.exchange import Answer, Job
from onnxopt.runtime.local import Launch, run_in_child
from onnxopt.runtime.target import Target
from onnxopt.targets.folders import arm64_folder
from onnxopt.targets.way import Unavailable


@dataclass(frozen=True)
class Emulated:
    """``folder`` is what ``onnxopt targets setup arm64`` made."""

    target: Target
    folder: Path
    timed: bool = False
    slowdown: float = 600
    slowdown_int8: float = 150

    @property
    def how(self) -> str:
        """In words."""
        return f"emulated by QEMU as {self.target.cpu}"

    def run(self, job: Job) -> Answer:
        """Run a job. Raises ExecutionError."""
        system = self.folder / "sysroot"
        python = str(system / "usr/bin/python3.11")
        command = (str(self.folder / "bin/qemu-aarch64"), "-cpu", str(self.target.cpu), "-L", str(system), python, "-I")
        packages = (str(self.folder / "site"),)
        return run_in_child(job, Launch(command=command, packages=packages, where=f"on {self.target.name}"))


def find_emulator(target: Target) -> Emulated | Unavailable:
    """How to emulate a target, or why that is not possible."""
    folder = arm64_folder()
    if target.architecture != "arm64" or not folder.is_dir():
        return Unavailable("it is not set up on this machine", "run 'onnxopt targets setup arm64'")
    return Emulated(target, folder)
