"""Where results may be written: never over what is read, never two into one file, and known before the work is done."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from onnxopt.data.images import SUFFIXES
from onnxopt.errors import OutputError
from onnxopt.graph import io

_SAMPLES = SUFFIXES | {".npz", ".npy"}


def check_places(
    models: Iterable[str | Path],
    others: Iterable[str | Path | None] = (),
    *,
    output: Path | None = None,
    in_place: bool = False,
    annotated: Path | None = None,
    report: Path | None = None,
    log_file: Path | None = None,
) -> None:
    """Refuse places where a result would do harm or cannot go; called before anything is opened for writing.

    ``models`` (with their weights) and ``others`` (data, preprocessing, recipe; names that are no files do not matter)
    are read, the rest is written. ``in_place``: ``output`` may be a model that is read. Raises OutputError where a
    result would replace what is read or another result, or cannot be written, ModelError for a file that is no model.
    """
    inputs = [Path(m) for m in models]
    weights = [file for path in inputs for file in io.files_of(path)[1:]]
    taken = [*weights, *(Path(o) for o in others if o is not None)]
    if output is not None:
        if not in_place and any(_overlap(output, m) for m in inputs):
            raise OutputError(f"{output} is the input: name another file with -o, or say --in-place")
        _check_file(output, "-o", taken)
        taken.append(output)
    taken += inputs
    if annotated is not None:
        _check_file(annotated, "--annotate", taken)
        taken.append(annotated)
    if report is not None:
        _check_file(report, "--report", taken)
        taken.append(report)
    if log_file is not None:
        _refuse_overlap(log_file, "--log-file", taken)


def _check_file(path: Path, option: str, taken: Iterable[Path]) -> None:
    """Can a file be put there, whole, under this name?"""
    if path.exists() and not path.is_file():
        kind = "folder" if path.is_dir() else "device"
        raise OutputError(f"{path} is a {kind}: name a file with {option}")
    _refuse_overlap(path, option, taken)
    io.check_writable(path)


def _refuse_overlap(path: Path, option: str, taken: Iterable[Path]) -> None:
    if any(_overlap(path, other) for other in taken):
        raise OutputError(f"{option} names {path}, which is read or written for something else: name another file")


def _overlap(written: Path, other: Path) -> bool:
    """Are both the same file, or is one a sample in the other, a folder of them?"""
    if os.path.abspath(written) == os.path.abspath(other):
        return True
    if not written.exists() or not other.exists():
        return False
    if other.is_dir():
        return written.suffix.lower() in _SAMPLES and other.resolve() in written.resolve().parents
    return written.samefile(other)
