"""Samples that a model takes, from files, images, a Python function, or made up; read as feeds when they are wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from onnxopt.data import sources
from onnxopt.data.arrays import Signature
from onnxopt.data.batching import Batching, with_sizes
from onnxopt.data.part import IntArray, Part
from onnxopt.data.preprocess import Preprocess, parse
from onnxopt.errors import DataError
from onnxopt.graph.signature import Feed, TensorSpec, describe

_DIGEST_CHUNK = 64


class Hash(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes, /) -> None: ...


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples in a fixed order. Make one with ``open_dataset``.

    ``source`` names it for the report; ``notes`` are what the report must say about it; ``synthetic`` is True for
    made-up data. ``parts`` hold the samples, ``rows`` (int64) says which of them, counted through all parts.
    """

    source: str
    inputs: tuple[TensorSpec, ...]
    parts: tuple[Part, ...]
    rows: IntArray
    notes: tuple[str, ...] = ()
    synthetic: bool = False

    @property
    def count(self) -> int:
        """The number of samples: a multiple of ``unit``."""
        return int(self.rows.size)

    @cached_property
    def batching(self) -> Batching:
        """How samples become feeds: stacked along the first axis, or each one a whole feed."""
        return Batching.of(self.inputs)

    @property
    def unit(self) -> int:
        """How many samples the graph takes at once, where it fixes that, else 1."""
        return self.batching.unit

    @cached_property
    def labels(self) -> IntArray | None:
        """The right class of each sample, int64 (count,), or None."""
        given = [p.labels for p in self.parts if p.labels is not None]
        return np.concatenate(given)[self.rows] if len(given) == len(self.parts) else None

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of the samples' content, the preprocessing, and the signature of the inputs."""
        digest = hashlib.sha256(describe(self.inputs).encode())
        for part, rows in self._pieces(self.rows):
            for start in range(0, rows.size, _DIGEST_CHUNK):
                _update(digest, part, rows[start : start + _DIGEST_CHUNK])
        return digest.hexdigest()

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Feed]:
        """Samples ``start`` to ``stop`` in order, as feeds of up to ``size`` samples.

        A batch that the graph fixes is kept to (``start`` and ``stop`` are then widened to whole batches); a sample
        that is a whole feed comes alone. A batch ends early where the next sample has another shape. Raises DataError
        when a sample cannot be read, and where samples of different shapes would have to share a fixed batch.
        """
        if size < 1:
            raise DataError(f"a batch cannot hold {size} samples; ask for at least 1")
        start, stop, _ = slice(start, stop).indices(self.count)
        if self.batching.whole:
            size = 1
        elif self.batching.fixed is not None:
            size = self.unit
            start, stop = start // size * size, min(-(-stop // size) * size, self.count)
        while start < stop:
            rows = self.rows[start : min(start + size, stop)]
            feed, used = self._feed(rows)
            if used < self.unit:
                raise DataError(
                    f"{self.source}: samples of different shapes cannot share the fixed batch of {self.unit}; "
                    f"the model takes {describe(self.inputs)}"
                )
            yield feed
            start += used

    def subset(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> Dataset:
        """The samples at these places, in this order. What does not fill a fixed batch is left out, and noted."""
        chosen = self.rows[np.asarray(indices, np.int64)]
        return _trimmed(replace(self, rows=chosen))

    def split(self, held_out_fraction: float = 0.25) -> tuple[Dataset, Dataset]:
        """(calibration, held out), the same on every call: of each stretch of samples, one is held out.

        At least one each; of a single sample (or a single fixed batch) both are that, and a note says so.
        """
        if not 0 < held_out_fraction < 1:
            raise DataError(f"the held-out fraction must be between 0 and 1, not {held_out_fraction}")
        groups = self.count // self.unit
        if groups == 1:
            note = "too few samples to hold any out, so the model is judged on what it was calibrated with"
            same = replace(self, notes=(*self.notes, note))
            return same, same
        held = spread(groups, min(max(round(groups * held_out_fraction), 1), groups - 1), seed=0)
        rest = np.setdiff1d(np.arange(groups), held)
        return self.subset(self._members(rest)), self.subset(self._members(held))

    def _members(self, groups: IntArray) -> IntArray:
        return (groups[:, None] * self.unit + np.arange(self.unit)).reshape(-1)

    @cached_property
    def _ends(self) -> IntArray:
        return np.cumsum([p.rows for p in self.parts])

    def _pieces(self, rows: IntArray) -> Iterator[tuple[Part, IntArray]]:
        """Runs of rows that lie in one part, numbered within it."""
        where = np.searchsorted(self._ends, rows, side="right")
        for run in np.split(np.arange(rows.size), np.flatnonzero(np.diff(where)) + 1):
            part = self.parts[where[run[0]]]
            yield part, rows[run] - (self._ends[where[run[0]]] - part.rows)

    def _feed(self, rows: IntArray) -> tuple[Feed, int]:
        """One feed of the first rows that have the same form, and how many those are."""
        pieces: list[tuple[Part, IntArray]] = []
        for part, own in self._pieces(rows):
            if pieces and part.form != pieces[0][0].form:
                break
            pieces.append((part, own))
        feeds = [part.read(own) for part, own in pieces]
        used = sum(own.size for _, own in pieces)
        if self.batching.whole:
            return {n: np.asarray(v[0]) for n, v in feeds[0].items()}, used
        once = {s.name for s in self.inputs if s.shape == ()}
        if len(feeds) == 1:
            return feeds[0], used
        return {n: v if n in once else np.concatenate([f[n] for f in feeds]) for n, v in feeds[0].items()}, used


def open_dataset(
    source: str | Path | None,
    inputs: Sequence[TensorSpec],
    *,
    preprocess: Preprocess | str | Path | None = None,
    samples: int | None = None,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    bounds: Mapping[str, int] | None = None,
) -> Dataset:
    """The samples of a source, checked against the inputs.

    ``source``: a .npz (arrays named like the inputs, perhaps ``labels``), a .npy, a folder of either (each file a
    sample or several), a folder of images, ``module:function`` (yields feeds, or (feed, labels)), or ``synthetic``
    (also None).
    ``preprocess``: how pixels become inputs; a preset's name, a .toml file, or the value.
    ``samples``: at most so many, one from each of as many equal stretches of the source, drawn with ``seed``; the
    first so many of a function; exactly so many synthetic ones.
    ``dims``: sizes for named dimensions. ``bounds``: synthetic integers of an input stay below this.

    Raises DataError for data that cannot be read or does not fit, SpecError for wrong preprocessing.
    """
    if samples is not None and samples < 1:
        raise DataError(f"cannot take {samples} samples; ask for at least 1")
    fixed = with_sizes(inputs, dims or {})
    ready = preprocess if isinstance(preprocess, Preprocess) or preprocess is None else parse(preprocess)
    signature = Signature.of(fixed, ready)
    found = sources.find(source, signature, samples=samples, seed=seed, bounds=bounds or {})
    total = sum(p.rows for p in found.parts)
    rows, notes = np.arange(total), found.notes
    if samples is not None and samples < total and not found.synthetic:
        rows = spread(total, samples, seed)
        notes = (*notes, f"{samples} of {total} samples, one from each of {samples} equal stretches (seed {seed})")
    return _trimmed(Dataset(found.name, signature.inputs, found.parts, rows, notes, found.synthetic))


def from_feeds(feeds: Iterable[object], inputs: Sequence[TensorSpec], source: str = "feeds") -> Dataset:
    """Feeds in memory, as a ``module:function`` may yield them. Raises DataError when one does not fit."""
    parts, notes = sources.feeds(source, Signature.of(inputs), feeds)
    rows = np.arange(sum(p.rows for p in parts))
    return _trimmed(Dataset(source, tuple(inputs), parts, rows, notes))


def spread(total: int, count: int, seed: int) -> IntArray:
    """``count`` of ``range(total)`` in rising order, one drawn from each of ``count`` equal stretches.

    Covers a source that is sorted by class, and, other than every k-th, one whose classes come in turns.
    """
    edges = np.arange(count + 1) * total // count
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


def _trimmed(dataset: Dataset) -> Dataset:
    """The same without the samples that do not fill the batch that the graph fixes."""
    unit, rest = dataset.unit, dataset.count % dataset.unit
    if dataset.count < unit:
        raise DataError(
            f"{dataset.source}: {dataset.count} samples are too few, the graph takes {unit} at once; give more "
            f"(the model takes {describe(dataset.inputs)})"
        )
    if rest == 0:
        return dataset
    note = f"the last {rest} of {dataset.count} samples are left out: the graph fixes a batch of {unit}"
    return replace(dataset, rows=dataset.rows[: dataset.count - rest], notes=(*dataset.notes, note))


def _update(digest: Hash, part: Part, rows: IntArray) -> None:
    if part.content is not None:
        for piece in part.content(rows):
            digest.update(piece)
        return
    for name, values in part.read(rows).items():
        digest.update(f"{name}: {values.dtype}{values.shape}".encode())
        digest.update(repr(values.tolist()).encode() if values.dtype.hasobject else values.tobytes())
