"""How many instructions a run takes on a processor, counted in emulation: an estimate of its cost without a clock.

It repeats to one part in a thousand. Instructions are not cycles: it compares models on one processor, not processors.
Needs a QEMU with plugins on the PATH (Debian 12's package qemu-user has them, later ones do not) and a C compiler.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from onnxopt.errors import ExecutionError, TargetError
from onnxopt.runtime.exchange import Job
from onnxopt.runtime.local import Launch, call
from onnxopt.targets.emulated import Emulated, qemu_version
from onnxopt.targets.folders import arm64_folder, cache_folder
from onnxopt.targets.way import Unavailable

_SOURCE = Path(__file__).with_name("count.c")
# The plugin is written for these; later ones count by other calls.
_VERSIONS = range(6, 9)
# The first that shows ARM's /proc/cpuinfo, without which ONNX Runtime crashes; and the parts that older ones know.
_CPUINFO_SINCE = (8, 2)
_PARTS = {"cortex-a53": 0xD03, "cortex-a72": 0xD08, "cortex-a76": 0xD0B, "neoverse-n1": 0xD0C}


@dataclass(frozen=True)
class Counter:
    """``emulated`` is how the target is emulated anyway, ``emulator`` one that takes plugins, ``plugin`` ours."""

    emulated: Emulated
    emulator: str
    plugin: Path
    part: int | None = None

    def count(self, job: Job) -> tuple[int, ...]:
        """Instructions that each model of a job takes for the last of its feeds, on one thread.

        Raises ExecutionError where a model fails, or nothing was counted.
        """
        where = f"on {self.emulated.target.name}"
        job = replace(job, threads=1, runs=max(job.runs, 2), keep=False, mark=True)  # the first run is not like others
        with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
            options = ["-plugin", str(self.plugin), *self.emulated.command[1:], "-I"]
            if self.part is not None:
                options[options.index("-L") + 1] = str(_told(Path(folder), self.part))
            launch = Launch(command=(self.emulator, *options), where=where)
            if self.emulated.packages is not None:
                launch = replace(launch, packages=self.emulated.packages)
            said = call(job, launch).stderr
        totals = [int(n) for n in re.findall(r"^instructions (\d+)$", said, re.MULTILINE)]
        if len(totals) != 2 * len(job.models):
            raise ExecutionError(f"the emulator counted no instructions {where}")
        return tuple(after - before for before, after in zip(totals[::2], totals[1::2], strict=True))


def find_counter(emulated: Emulated) -> Counter | Unavailable:
    """How to count a target's instructions, or why that is not possible."""
    target, arm = emulated.target, emulated.target.architecture == "arm64"
    name = "qemu-aarch64" if arm else "qemu-x86_64"
    emulator = shutil.which(name)
    if emulator is None or not _takes_plugins(emulator):
        return Unavailable(f"there is no {name} that takes plugins", "install one, such as Debian 12's qemu-user")
    version = tuple(map(int, (qemu_version(emulator) or "0.0").split(".")))
    if version[0] not in _VERSIONS:
        return Unavailable(f"QEMU {version[0]} takes other plugins than ours", "use QEMU 6, 7 or 8")
    part = _PARTS.get(str(target.cpu)) if arm and version < _CPUINFO_SINCE else None
    if arm and version < _CPUINFO_SINCE and part is None:
        return Unavailable(f"QEMU {version[0]}.{version[1]} does not know {target.cpu}", "use QEMU 8.2")
    try:
        return Counter(emulated, emulator, _plugin(), part)
    except TargetError as error:
        return Unavailable.because(error)


@cache
def _takes_plugins(emulator: str) -> bool:
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run([emulator, "-h"], capture_output=True, timeout=10, stdin=subprocess.DEVNULL)
        return b"-plugin" in done.stdout
    return False


def _plugin() -> Path:
    """The plugin, compiled once for each of its versions. Raises TargetError."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise TargetError("counting needs a C compiler; install gcc")
    made = cache_folder("counting") / f"{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if not made.exists():
        try:
            made.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".making-", dir=made.parent) as folder:
                new = Path(folder) / made.name
                command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(new), str(_SOURCE)]
                subprocess.run(command, check=True, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
                os.replace(new, made)
        except (OSError, subprocess.SubprocessError) as error:
            raise TargetError(f"the counter cannot be compiled in {made.parent}: {error}") from error
    return made


def _told(folder: Path, part: int) -> Path:
    """The ARM system again, with a /proc/cpuinfo: the file of x86 would show through."""
    for name in (arm64_folder() / "sysroot").iterdir():
        if name.name != "proc":
            (folder / name.name).symlink_to(name)
    (folder / "proc").mkdir()
    features = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
    if part >= _PARTS["cortex-a76"]:
        features += " atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
    lines = ("processor\t: 0", f"Features\t: {features}", "CPU implementer\t: 0x41", f"CPU part\t: {part:#x}")
    (folder / "proc/cpuinfo").write_text("\n".join(lines) + "\n")
    return folder
