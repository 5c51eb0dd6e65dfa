"""Reports as files: a page or JSON, by the name, written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from onnxopt.errors import OutputError


def write_text(text: str, path: Path) -> None:
    """Write a report, all or nothing. Raises OutputError where that cannot be done."""
    scratch = path.with_name(f".onnxopt-{os.getpid()}-{path.name}")
    try:
        # A file name that is not UTF-8 comes as lone surrogates, which only escapes can say.
        scratch.write_bytes(text.encode("utf-8", "backslashreplace"))
        os.replace(scratch, path)
    except OSError as error:
        where = f"cannot write the report {path}: {error.strerror}"
        raise OutputError(f"{where}; choose another place with --report") from error
    finally:
        with suppress(OSError):
            scratch.unlink()
