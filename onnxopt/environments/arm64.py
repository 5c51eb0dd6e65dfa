"""An ARM system to emulate: QEMU, Debian's Python, and the same ONNX Runtime as here. No root, nothing is installed.

bin/         the emulators, where no fitting one was on the PATH
sysroot/     Debian's C library and Python for ARM
site/        ONNX Runtime and numpy for ARM
licenses/    of the Debian packages; those of the Python packages lie beside them in site
lock.json    the Debian packages that it was made of
environment.json
    qemu             the emulator of ARM, absolute or relative to the folder
    qemu_version     of qemu
    python           the interpreter's path in sysroot
    onnxruntime, numpy   versions in site
    packages         name, version and sha256 of everything that was fetched
    made             the version of onnxopt
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from onnxopt.environments import selftest, wheels
from onnxopt.environments.debian import Mirror
from onnxopt.environments.lock import Part, dump
from onnxopt.environments.source import Source
from onnxopt.environments.staging import alone, put, scratch
from onnxopt.environments.unpack import unpack
from onnxopt.errors import TargetError
from onnxopt.progress import Track
from onnxopt.runtime import session
from onnxopt.runtime.machine import architecture
from onnxopt.targets.emulated import qemu_version
from onnxopt.targets.environment import read_environment
from onnxopt.targets.folders import arm64_folder

ARM64 = "arm64"
PYTHON = "usr/bin/python3.11"
# Roughly what the wheels of ONNX Runtime and numpy weigh; pip tells their size only by fetching them.
WHEELS_BYTES = 38_000_000
_EMULATORS = ("usr/bin/qemu-aarch64", "usr/bin/qemu-x86_64")
_ON_PATH = ("qemu-aarch64", "qemu-aarch64-static")
_LICENSE = re.compile(r"usr/share/doc/([^/]+)/copyright")
# Read by people and by programs that the runner does not start.
_UNREAD = re.compile(
    r"usr/share/(?!doc/[^/]+(/copyright)?$)|usr/lib/python3\.11/(lib2to3|pydoc_data|ensurepip|idlelib|tkinter)/|"
    r"(usr/)?lib/aarch64-linux-gnu/gconv/|usr/lib/python3\.11/config-"
)


def current() -> str | None:
    """One line about the environment if it is there, whole, and of the same ONNX Runtime as here; None otherwise."""
    there = read_environment(arm64_folder())
    if there is None or there.onnxruntime != session.__version__:
        return None
    if qemu_version(there.qemu) != there.qemu_version:
        return None
    return _line(there.onnxruntime, there.qemu_version)


def plan(source: Source) -> list[str]:
    """What would be fetched from where, and how much, in lines. Nothing is fetched. Raises TargetError."""
    if sys.platform != "linux" or architecture() != "x86-64":
        raise TargetError("ARM is emulated on x86-64 Linux only: use a real device by --target ssh://user@host")
    lock, mine = source.lock, _mine()
    emulator = f"{_mb(lock.emulator.size)} for QEMU"
    if mine is not None and source.keep is None:
        emulator += f", only if {mine} does not fit"
    runtime = f"ONNX Runtime {session.__version__} and numpy for ARM"
    return [
        f"into {arm64_folder()}, about 160 MB:",
        f"from {source.address}: {_mb(lock.system.size)} for a system with Python, {emulator}",
        f"from {source.wheels_from(ARM64)}: {runtime}, about {_mb(WHEELS_BYTES)}",
    ]


def set_up(source: Source, say: Callable[[str], None], track: Track) -> str:
    """Make the environment; one line about it. What is there and fits is left alone, unless files are to be kept.

    Raises TargetError; nothing is changed then.
    """
    folder = arm64_folder()
    with alone(folder.parent, say):
        there = current()
        if there is not None and source.keep is None:
            return f"it is set up already: {there}"
        for line in plan(source):
            say(line)
        _check_folder(source)
        with scratch(folder.parent) as new:
            made = _make(new, source, say, track)
            put(new, folder)
    return f"set up: {_line(session.__version__, made)}"


def _check_folder(source: Source) -> None:
    """Raises TargetError for a folder that cannot stand for a mirror."""
    folder, packages = source.offline, (*source.lock.system.packages, *source.lock.emulator.packages)
    if folder is not None and not (folder / "dists").is_dir():
        missing = next((p.file for p in packages if not (folder / p.file).is_file()), None)
        if missing is not None:
            raise TargetError(f"{folder} lacks {missing}: fill it by --keep with this version of onnxopt")


def _make(new: Path, source: Source, say: Callable[[str], None], track: Track) -> str:
    """Fill a folder; the version of the emulator."""
    files = source.keep if source.keep is not None else new / "files"
    mirror = Mirror(source.address, files, say, track, source.keyrings)
    lock = replace(source.lock, system=mirror.obtain(source.lock.system))
    versions, sums = _packages(new / "site", source.wheels(files, ARM64), source, track)
    for package in track(lock.system.packages, "Unpack the system"):
        unpack(mirror.path(package), new / "sysroot", lambda name: not _UNREAD.match(name))
    _keep_licenses(new / "sysroot", new / "licenses")
    emulator = _mine() if source.keep is None else None
    if emulator is not None and not _fits(emulator, new, say, track):
        emulator = None
    debian = lock.system.packages
    if emulator is None:
        lock = replace(lock, emulator=mirror.obtain(lock.emulator))
        debian += lock.emulator.packages
        _unpack_emulator(lock.emulator, mirror, new, track)
        _test(new / "bin/qemu-aarch64", new, track)
    shutil.rmtree(new / "files", ignore_errors=True)
    (new / "lock.json").write_text(dump(lock), encoding="utf-8")
    made = {
        "qemu": "bin/qemu-aarch64" if emulator is None else str(emulator),
        "qemu_version": qemu_version(str(emulator or new / "bin/qemu-aarch64")),
        "python": PYTHON,
        "onnxruntime": versions["onnxruntime"],
        "numpy": versions["numpy"],
        "packages": [{"name": p.name, "version": p.version, "sha256": p.sha256} for p in debian]
        + [{"name": n, "version": v, "sha256": sums.get(n)} for n, v in sorted(versions.items())],
        "made": version("onnxopt"),
    }
    (new / "environment.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return str(made["qemu_version"])


def _packages(site: Path, ready: Path, source: Source, track: Track) -> tuple[dict[str, str], dict[str, str]]:
    """Fill ``site``, by way of the wheels in ``ready``; versions and SHA-256 by name."""
    wanted = (f"onnxruntime=={session.__version__}", "numpy")
    for _ in track(range(1), "Fetch and install Python packages"):
        if source.offline is None:
            wheels.download(wanted, ready, wheels.ARM64)
        wheels.install(wanted, ready, site, wheels.ARM64)
    versions = wheels.installed(site)
    wheels.trim(site)
    return versions, wheels.sums(ready, versions)


def _mine() -> Path | None:
    """An emulator of ARM that is installed here."""
    found = next(filter(None, map(shutil.which, _ON_PATH)), None)
    return None if found is None else Path(found).resolve()


def _fits(emulator: Path, new: Path, say: Callable[[str], None], track: Track) -> bool:
    """Whether the emulator that is here will do: old ones crash in ONNX Runtime, or lack processors."""
    try:
        _test(emulator, new, track)
    except TargetError as error:
        say(f"{emulator} does not fit, another is fetched: {error}")
        return False
    say(f"{emulator} fits: none is fetched")
    return True


def _test(emulator: Path, new: Path, track: Track) -> None:
    for _ in track(range(1), "Test in emulation"):
        selftest.check(emulator, new / "sysroot", new / "sysroot" / PYTHON, new / "site", session.__version__)
    if qemu_version(str(emulator)) is None:
        raise TargetError(f"{emulator} does not say which version it is")


def _unpack_emulator(part: Part, mirror: Mirror, new: Path, track: Track) -> None:
    """The two programs out of the many in the package."""
    scratch = new / "package"
    for package in track(part.packages, "Unpack QEMU"):
        unpack(mirror.path(package), scratch, lambda name: name in _EMULATORS or bool(_LICENSE.fullmatch(name)))
    (new / "bin").mkdir()
    for name in _EMULATORS:
        if not (scratch / name).is_file():
            raise TargetError(f"the package of QEMU holds no {name}: use another --mirror, or a newer onnxopt")
        (scratch / name).rename(new / "bin" / Path(name).name)
    _keep_licenses(scratch, new / "licenses")
    shutil.rmtree(scratch)


def _keep_licenses(system: Path, licenses: Path) -> None:
    """Move what packages say of their licences to one place; several share one by a link."""
    licenses.mkdir(exist_ok=True)
    for path in sorted(system.glob("usr/share/doc/*/copyright")):
        shutil.copyfile(path, licenses / f"{path.parent.name}.txt")
    shutil.rmtree(system / "usr/share/doc", ignore_errors=True)


def _line(onnxruntime: str, qemu: str) -> str:
    return f"ONNX Runtime {onnxruntime} for ARM, emulated by QEMU {qemu}, in {arm64_folder()}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
