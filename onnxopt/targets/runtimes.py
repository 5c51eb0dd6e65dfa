"""Another version of ONNX Runtime on this processor, in a process of its own that finds no other."""

from __future__ import annotations

import json
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from onnxopt.errors import ExecutionError, SpecError, TargetError
from onnxopt.runtime.exchange import Answer, Job
from onnxopt.runtime.local import Launch, run_in_child
from onnxopt.targets.folders import cache_folder
from onnxopt.targets.way import Unavailable

_VERSION = re.compile(r"\d{1,3}\.\d{1,3}(\.\d{1,3})?")


@dataclass(frozen=True)
class OtherRuntime:
    """``folder`` is what ``onnxopt targets setup ort-VERSION`` made, ``version`` what lies in it: ``1.16.3``."""

    version: str
    folder: Path
    timed: bool = True
    slowdown: float = 1
    slowdown_int8: float = 1

    @property
    def how(self) -> str:
        """In words."""
        return f"natively, by ONNX Runtime {self.version}"

    def run(self, job: Job) -> Answer:
        """Run a job. Raises ExecutionError."""
        # -S hides the packages of this Python, among them its own ONNX Runtime.
        command, where = (sys.executable, "-I", "-S"), f"with ONNX Runtime {self.version}"
        answer = run_in_child(job, Launch(command=command, packages=(str(self.folder / "site"),), where=where))
        if answer.onnxruntime != self.version:
            raise ExecutionError(f"ONNX Runtime {answer.onnxruntime} ran where {self.version} was meant to")
        return answer


def parse_version(text: str) -> str:
    """A version of ONNX Runtime as users write it: ``1.16`` or ``1.16.3``. Raises SpecError."""
    if not _VERSION.fullmatch(text):
        raise SpecError(f"'{text}' is no version of ONNX Runtime: write one such as 1.16 or 1.16.3")
    return text


def runtime_folder(version: str) -> Path:
    """Where a version is kept; ``version`` has three parts."""
    return cache_folder("targets", f"ort-{version}")


def find_runtime(version: str) -> OtherRuntime | Unavailable:
    """How to run models with a version (``1.16``: the newest of these that is set up), or why not. Raises SpecError."""
    wanted = parse_version(version)
    remedy = f"run 'onnxopt targets setup ort-{wanted}'"
    foreign = ""
    try:
        there = [cache_folder("targets", p.name) for p in cache_folder("targets").glob("ort-*")]
    except TargetError as error:
        return Unavailable.because(error)
    folders = [p for p in there if f"{p.name[4:]}.".startswith(f"{wanted}.")]
    for folder in sorted(folders, key=_order, reverse=True):
        try:
            made = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
            python, found = str(made["python"]), str(made["onnxruntime"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if python == python_version():
            return OtherRuntime(found, folder)
        foreign = f"ONNX Runtime {found} is set up for Python {python}, and this is {python_version()}"
    return Unavailable(foreign or f"ONNX Runtime {wanted} is not set up on this machine", remedy)


def python_version() -> str:
    """Of this Python, as far as packages depend on it: ``3.11``."""
    return ".".join(platform.python_version_tuple()[:2])


def _order(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.name[4:].split(".") if part.isdecimal())
