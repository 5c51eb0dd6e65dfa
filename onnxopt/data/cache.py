"""Statistics kept in files, so that an interrupted calibration goes on and a finished one is not repeated.

A file is named by a digest of all that its content depends on (model, data, tensors) and holds plain arrays, never
pickled objects. It is replaced as a whole, so a reader sees the old or the new one; a damaged one is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.data.statistics import HALF, Histogram, Statistics
from onnxopt.errors import DataError, OutputError

_DAMAGE = (OSError, ValueError, TypeError, LookupError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Progress:
    """The statistics of the first ``done`` samples."""

    done: int
    statistics: Mapping[str, Statistics]


class Cache:
    """A folder of such files. Raises OutputError when it cannot be made or written."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @classmethod
    def of(cls, folder: str | Path | None) -> Cache | None:
        """None stays None: no cache."""
        return None if folder is None else cls(folder)

    def load(self, key: str, samples: int) -> Progress | None:
        """What was stored under ``key`` for data of ``samples`` samples; None when nothing was.

        Raises DataError when the file is damaged.
        """
        path = self._path(key)
        if not path.exists():
            return None
        try:
            # Opened here, because np.load leaves its own file open when the content is no archive.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return _unpack(arrays, samples)
        except _DAMAGE as error:
            raise DataError(f"{path}: damaged cache file, ignored and made again") from error

    def store(self, key: str, progress: Progress) -> None:
        path = self._path(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, prefix=".", suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    np.savez(file, allow_pickle=False, **_pack(progress))
                os.replace(name, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
        except OSError as error:
            raise OutputError(
                f"{self.folder}: cannot write the cache ({error.strerror or error}); "
                "choose another folder or leave --cache out"
            ) from error

    def _path(self, key: str) -> Path:
        return self.folder / f"statistics-{key}.npz"


def _pack(progress: Progress) -> dict[str, npt.NDArray[Any]]:
    found = list(progress.statistics.values())
    histograms = [h for h in (s.histogram for s in found) if h is not None]
    if len(histograms) not in (0, len(found)):
        raise ValueError("either all statistics have a histogram or none")
    return {
        "names": np.frombuffer(json.dumps(list(progress.statistics)).encode(), np.uint8),
        "done": np.array([progress.done], np.int64),
        "numbers": np.array([(s.count, s.nan_count, s.inf_count) for s in found], np.int64).reshape(-1, 3),
        "extremes": np.array([(s.minimum, s.maximum) for s in found], np.float64).reshape(-1, 2),
        "bins": np.array([(h.exponent, h.zeros, h.sampled) for h in histograms], np.int64).reshape(-1, 3),
        "counts": np.array([h.counts for h in histograms], np.int64).reshape(-1, 2 * HALF),
    }


def _unpack(arrays: Mapping[str, npt.NDArray[Any]], samples: int) -> Progress:
    """Raises ValueError or KeyError for anything that ``_pack`` would not have written."""
    names = json.loads(arrays["names"].tobytes())
    (done,) = arrays["done"].tolist()
    numbers, extremes, bins, counts = (arrays[part] for part in ("numbers", "extremes", "bins", "counts"))
    if not 0 <= done <= samples:
        raise ValueError("done")
    if any(a.dtype.kind not in "if" or (a < 0).any() for a in (numbers, counts)) or numbers.shape != (len(names), 3):
        raise ValueError("counts")
    if extremes.shape != (len(names), 2) or np.isnan(extremes).any() or len(bins) not in (0, len(names)):
        raise ValueError("extremes")
    if counts.shape != (len(bins), 2 * HALF) or bins.shape != (len(bins), 3):
        raise ValueError("bins")
    if (np.abs(bins[:, 0]) > 127).any():
        raise ValueError("exponent")
    histograms: list[Histogram | None] = [None] * len(names)
    if len(bins):
        pairs = zip(bins.tolist(), counts, strict=True)
        histograms = [Histogram(e, row, zeros, bool(sampled)) for (e, zeros, sampled), row in pairs]
    rows = zip(names, numbers.tolist(), extremes.tolist(), histograms, strict=True)
    return Progress(done, {name: Statistics(n, lo, hi, nan, inf, h) for name, (n, nan, inf), (lo, hi), h in rows})
