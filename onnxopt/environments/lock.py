"""Which Debian packages an environment is made of, each with its SHA-256."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A package; ``file`` is its path on a mirror, ``size`` is in bytes."""

    name: str
    version: str
    file: str
    size: int
    sha256: str

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Part:
    """Packages of one suite and architecture."""

    suite: str
    architecture: str
    packages: tuple[Package, ...]

    @property
    def size(self) -> int:
        """Bytes to fetch."""
        return sum(p.size for p in self.packages)


@dataclass(frozen=True)
class Lock:
    """``system``: what Python needs to run on ARM; ``emulator``: QEMU for this machine."""

    system: Part
    emulator: Part


def shipped() -> Lock:
    """The packages that this version of onnxopt was tried with."""
    return parse(Path(__file__).with_name("lock.json").read_text(encoding="utf-8"))


def parse(text: str) -> Lock:
    """The inverse of ``dump``."""
    parts = json.loads(text)
    return Lock(**{name: Part(p["suite"], p["architecture"], _packages(p)) for name, p in parts.items()})


def _packages(part: dict[str, list[dict[str, str]]]) -> tuple[Package, ...]:
    return tuple(Package(p["name"], p["version"], p["file"], int(p["size"]), p["sha256"]) for p in part["packages"])


def dump(lock: Lock) -> str:
    """A lock as JSON."""
    return json.dumps(asdict(lock), indent=1) + "\n"
