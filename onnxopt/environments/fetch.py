"""Fetch a file whose size and SHA-256 are known, or refuse what came instead."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from onnxopt.errors import TargetError
from onnxopt.progress import Track

_PIECE = 2**20
_TRIES = 3
_TIMEOUT_S = 30
OTHERWISE = "use --offline with files that were fetched elsewhere, or a real device by --target ssh://user@host"


class GoneError(TargetError):
    """The other side says that it has no such file."""


class _BrokenError(Exception):
    """Fetching failed in a way that may not last."""


def fetch(address: str, path: Path, track: Track, *, size: int, sha256: str | None) -> None:
    """Put a file at ``path``, whole or not at all; one that is there and right is left alone.

    Without ``sha256`` the file may be smaller than ``size``, and its content is for the caller to check. Raises
    GoneError, or TargetError where the connection fails or something else comes; OSError where it cannot be written.
    """
    if sha256 is not None and path.is_file() and _sha256(path) == sha256:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        found = _persistently(address, part, track, size, exact=sha256 is not None)
        if sha256 not in (None, found):
            raise TargetError(f"{address} is not the file it should be (its SHA-256 differs): try another --mirror")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _persistently(address: str, part: Path, track: Track, size: int, *, exact: bool) -> str:
    """Fetch, again where the connection breaks; the SHA-256 of what came."""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(attempt)
        try:
            got, found = _once(address, part, track, size)
            if got > size:
                raise TargetError(f"{address} is larger than it should be: try another --mirror")
            if exact and got < size:
                raise _BrokenError(f"it was cut off after {got} of {size} bytes")
            return found
        except _BrokenError as error:
            reason = str(error)
    raise TargetError(f"cannot fetch {address}: {reason}; {OTHERWISE}")


def _once(address: str, part: Path, track: Track, size: int) -> tuple[int, str]:
    """Bytes written and their SHA-256; stops soon after ``size``."""
    got, digest = 0, hashlib.sha256()
    pieces = track(_pieces(address), f"Fetch {address.rsplit('/', 1)[-1]}, MB", total=-(-size // _PIECE))
    with part.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            got += len(piece)
            if got > size:
                break
    return got, digest.hexdigest()


def _pieces(address: str) -> Iterator[bytes]:
    """What lies at an address; only trouble with the connection is caught here, none with what is done with a piece."""
    try:
        answer = urlopen(address, timeout=_TIMEOUT_S)
    except HTTPError as error:
        error.close()
        if error.code in (404, 410):
            raise GoneError(f"{address} does not exist: try another --mirror") from None
        raise _BrokenError(f"the server says {error.code} {error.reason}") from None
    except (URLError, OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, FileNotFoundError) or (urlsplit(address).scheme == "file" and _missing(address)):
            raise GoneError(f"{address} does not exist: try another --mirror") from None
        raise _BrokenError(str(reason) or type(reason).__name__) from None
    with answer:
        while True:
            try:
                piece = answer.read(_PIECE)
            except (OSError, http.client.HTTPException) as error:
                raise _BrokenError(str(error) or type(error).__name__) from None
            if not piece:
                return
            yield piece


def _missing(address: str) -> bool:
    with suppress(OSError, ValueError):
        return not Path(urlsplit(address).path).exists()
    return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
