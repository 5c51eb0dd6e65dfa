"""Arrays in .npy and .npz files: headers without the data, then the data, mapped or unpacked when it is wanted."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

from onnxopt.errors import DataError
from onnxopt.graph.signature import Array

# The key of the one array in a .npy file.
ALONE = ""
# An archive is unpacked into memory, and a small one can hold endless zeros.
_MOST_BYTES = 2**34
_FAULTS = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, SyntaxError)


@dataclass(frozen=True)
class Header:
    """An array before it is read."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


Headers: TypeAlias = Mapping[str, Header]


def headers(path: Path) -> Headers:
    """Type and shape of every array in the file; a .npy's is under ``ALONE``.

    Raises DataError for a file that is corrupt, cut short, or holds Python objects (which are never unpickled).
    """
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as stream:
                return {ALONE: _header(stream, path.stat().st_size, str(path))}
        with zipfile.ZipFile(path) as archive:
            return {name: _member(archive, entry, f"{path}, array {name!r}") for name, entry in _arrays(archive)}
    except _FAULTS as error:
        raise _unreadable(path, error) from error


def load(path: Path, names: Iterable[str]) -> dict[str, Array]:
    """The named arrays: of a .npy mapped from disk, of a .npz unpacked. Raises DataError for a corrupt file."""
    try:
        if path.suffix.lower() == ".npy":
            return {ALONE: np.load(path, mmap_mode="r", allow_pickle=False)}
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except MemoryError as error:
        raise DataError(f"{path} does not fit in memory; save it as a folder of smaller .npz files") from error
    except _FAULTS as error:
        raise _unreadable(path, error) from error


def _arrays(archive: zipfile.ZipFile) -> list[tuple[str, zipfile.ZipInfo]]:
    return [(e.filename.removesuffix(".npy"), e) for e in archive.infolist() if e.filename.endswith(".npy")]


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> Header:
    if entry.file_size > _MOST_BYTES:
        raise DataError(f"{where} unpacks to {entry.file_size} bytes; save it as .npy, which is read piece by piece")
    with archive.open(entry) as stream:
        return _header(stream, entry.file_size, where)


def _header(stream: IO[bytes], length: int, where: str) -> Header:
    """Read one array's header and hold its claim against the length of the file."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise DataError(f"{where} holds Python objects, which are never loaded; save plain numbers of one shape")
    if stream.tell() + dtype.itemsize * int(np.prod(shape, dtype=object)) > length:
        raise DataError(
            f"{where} is cut short: {Header(dtype, shape)} needs more than its {length} bytes; write it again"
        )
    return Header(dtype, shape)


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"cannot read {path}: {type(error).__name__}: {reason}; is it a whole {path.suffix} file?")
