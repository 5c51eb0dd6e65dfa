"""Python packages by the user's own pip, so that it asks the index that the user has chosen."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from onnxopt.environments.fetch import OTHERWISE
from onnxopt.errors import TargetError

# Wheels for ARM: of the tags of the C library that fit the system's (2.36), those that ONNX Runtime has used.
_TAGS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
ARM64 = (
    *(part for tag in _TAGS for part in ("--platform", f"{tag}_aarch64")),
    *("--python-version", "3.11", "--implementation", "cp"),
    *("--abi", "cp311", "--abi", "abi3", "--abi", "none"),
)
# What only makes and changes models, and what only tests need.
_UNREAD = ("onnxruntime/transformers", "onnxruntime/quantization", "onnxruntime/tools", "onnxruntime/datasets")
_UNREAD_TOO = ("numpy/f2py", "numpy/**/tests", "numpy/**/*.pyi", "numpy/**/*.a", "bin")
# pip keeps to itself what this says too much.
_QUIET = ("--quiet", "--disable-pip-version-check", "--no-input", "--progress-bar", "off")


def download(wanted: Sequence[str], folder: Path, platform: Sequence[str] = ()) -> None:
    """Fetch wheels of the packages wanted (``numpy<2``), not of what they need. Raises TargetError."""
    folder.mkdir(parents=True, exist_ok=True)
    _pip("download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), *platform, *wanted)


def install(wanted: Sequence[str], wheels: Path, site: Path, platform: Sequence[str] = ()) -> None:
    """Install packages from a folder of wheels into another folder, with no connection. Raises TargetError."""
    options = ("--no-index", "--no-deps", "--only-binary=:all:", "--no-compile", "--find-links", str(wheels))
    _pip("install", *options, "--target", str(site), *platform, *wanted, alone=True)


def installed(site: Path) -> dict[str, str]:
    """Versions of what lies in a folder, by name."""
    found = (re.fullmatch(r"(.+)-([^-]+)\.dist-info", p.name) for p in site.glob("*.dist-info"))
    return {match[1].lower(): match[2] for match in found if match}


def sums(wheels: Path, versions: dict[str, str]) -> dict[str, str]:
    """SHA-256 of the wheels of these versions, by name."""
    files = {name: sorted(wheels.glob(f"{name}-{version}-*.whl")) for name, version in versions.items()}
    return {name: hashlib.sha256(found[-1].read_bytes()).hexdigest() for name, found in files.items() if found}


def trim(site: Path) -> None:
    """Delete what the runner never reads."""
    import shutil

    for pattern in (*_UNREAD, *_UNREAD_TOO):
        for path in list(site.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _pip(*arguments: str, alone: bool = False) -> None:
    """Run pip; ``alone``: without what the user has set for it. Raises TargetError that says what failed."""
    if find_spec("pip") is None:
        raise TargetError(
            f"{sys.executable} has no pip to fetch Python packages with: run '{sys.executable} -m ensurepip'"
        )
    environment = {k: v for k, v in os.environ.items() if not alone or not k.startswith("PIP_")}
    if alone:
        environment["PIP_CONFIG_FILE"] = os.devnull
    command = [sys.executable, "-P", "-m", "pip", arguments[0], *_QUIET, *arguments[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise TargetError(_reason(done.stderr, done.returncode))


def _reason(said: str, code: int) -> str:
    """What to tell of pip's complaint."""
    wanted = re.search(r"requirement (\S+) \(from versions: (.*?)\)", said)
    if wanted is None:
        errors = [line.partition(":")[2].strip() for line in said.splitlines() if line.startswith("ERROR:")]
        return f"pip failed: {errors[0] if errors else f'exit code {code}'}; {OTHERWISE}"
    versions = [] if wanted[2] == "none" else wanted[2].split(", ")
    if not versions:
        return f"pip finds no {wanted[1]}: is there a connection, or a wheel in that folder? Otherwise {OTHERWISE}"
    return f"pip finds no {wanted[1]} for this platform: there are {versions[0]} to {versions[-1]}"
