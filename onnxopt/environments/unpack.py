"""Unpack a Debian package into a folder that it cannot leave: an ar archive that holds a tar archive."""

from __future__ import annotations

import io
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from onnxopt.errors import TargetError

_MAGIC = b"!<arch>\n"
_HEADER = 60
_MOST_BYTES = 2**30
_MOST_MEMBERS = 20_000


def unpack(package: Path, root: Path, wanted: Callable[[str], bool]) -> None:
    """Unpack the members whose path (``usr/bin/qemu``) is wanted; folders come as they are needed.

    All may read the files, nothing is setuid. Absolute links are made relative, and none leaves ``root``.
    Raises TargetError for a package that is damaged, or would write or lead elsewhere, or is unreasonably large.
    """
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    left = _MOST_BYTES
    try:
        with package.open("rb") as file, _data(file) as archive:
            for count, member in enumerate(archive):
                left -= member.size if member.isfile() else 0
                if left < 0 or count > _MOST_MEMBERS:
                    raise _RefusedError("holds more than any package does")
                name = _inside(member.name)
                if not member.isdir() and wanted(name):
                    _put(archive, member, root, name)
    except _RefusedError as error:
        raise TargetError(f"the package {package.name} {error}: it was not unpacked") from None
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, ValueError) as error:
        raise TargetError(f"the package {package.name} is damaged: {error}") from error


class _RefusedError(Exception):
    """What a package must not hold."""


def _data(file: IO[bytes]) -> tarfile.TarFile:
    """The archive of files in a package."""
    for name, size in _members(file):
        if name in ("data.tar", "data.tar.xz", "data.tar.gz"):
            return tarfile.open(fileobj=io.BufferedReader(_Window(file, size)), mode="r|*")
        if name.startswith("data.tar"):
            raise _RefusedError(f"is packed as {name}, which is not read here")
    raise ValueError("it holds no files")


def _members(file: IO[bytes]) -> Iterator[tuple[str, int]]:
    """Name and size of each member of an ar archive; the file stands at its content then."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it is no ar archive")
    start = len(_MAGIC)
    while header := file.read(_HEADER):
        if len(header) < _HEADER:
            raise ValueError("it was cut off")
        size = int(header[48:58])
        yield header[:16].decode("ascii").strip().rstrip("/"), size
        start += _HEADER + size + (size & 1)
        file.seek(start)


class _Window(io.RawIOBase):
    """The next ``size`` bytes of a file, as a file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # any buffer that is given
        piece = self._file.read(min(len(buffer), self._left))
        buffer[: len(piece)] = piece
        self._left -= len(piece)
        return len(piece)


def _inside(name: str) -> str:
    """A member's path below the root."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise _RefusedError(f"holds the path '{name}', which leads elsewhere")
    return str(path)


def _put(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path, name: str) -> None:
    """Write one file or link."""
    target = root / name
    # Links that came before may lead elsewhere, so it is the real folder that counts.
    if not Path(os.path.realpath(target.parent)).is_relative_to(root):
        raise _RefusedError(f"writes '{name}' through a link that leads elsewhere")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or target.is_file():
        target.unlink()
    if member.issym():
        target.symlink_to(_link(target, member.linkname, root))
    elif member.islnk():
        source = root / _inside(member.linkname)
        if not Path(os.path.realpath(source)).is_relative_to(root) or not source.is_file():
            raise _RefusedError(f"links '{name}' to a file that is not in it")
        shutil.copyfile(source, target)
        target.chmod(source.stat().st_mode)
    elif member.isfile() and (content := archive.extractfile(member)) is not None:
        with content, target.open("xb") as file:
            shutil.copyfileobj(content, file)
        target.chmod(0o644 | (member.mode & 0o111))
    else:
        raise _RefusedError(f"holds '{name}', which is neither a file nor a link")


def _link(link: Path, leads_to: str, root: Path) -> str:
    """Where a link is to lead: absolute ones are meant from the root of the system that the package is for."""
    absolute = leads_to.startswith("/")
    goal = root / leads_to.lstrip("/") if absolute else link.parent / leads_to
    climbs = [part == ".." for part in PurePosixPath(leads_to).parts if part != "/"]
    later = climbs != sorted(climbs, reverse=True)  # down and up again: what it leaves may become a link yet
    if later or not Path(os.path.realpath(goal)).is_relative_to(root):
        raise _RefusedError(f"links '{link.relative_to(root)}' to '{leads_to}', which leads elsewhere")
    return os.path.relpath(goal, os.path.realpath(link.parent)) if absolute else leads_to
