"""How far a candidate's answers are from the reference's, summed up batch by batch: nothing is kept but sums."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxopt.core.classes import Accuracies, Classes
from onnxopt.graph.signature import Array, Feed
from onnxopt.report import words
from onnxopt.report.report import OutputQuality

# Elements compared at once, so that large outputs need little memory beside them.
_CHUNK = 2**20
# An output that stays below holds little but what float32 rounds beside scores up to 1: a detector that finds nothing.
_FAINT = 1e-6


@dataclass(frozen=True)
class Quality:
    """All outputs together: ``sqnr_db`` and ``cosine`` of the worst; NaN if none could be compared.

    Outputs that name things (ints, bools, text) count for these two only where there are no others. ``agreement`` is
    the share of equal top-1 answers, None where no output looks like answers; the accuracies are None without labels.
    """

    outputs: tuple[OutputQuality, ...]
    sqnr_db: float
    cosine: float
    agreement: float | None
    accuracy: float | None
    accuracy_reference: float | None
    accuracy_top5: float | None
    accuracy_top5_reference: float | None
    notes: tuple[str, ...]


class Comparison:
    """Fed with the outputs of both models, batch by batch; the samples in their order, from the first.

    ``labels``: (samples,) class indices, or None.
    """

    def __init__(self, labels: Array | None = None) -> None:
        self._labels = labels
        self._outputs: dict[str, _Output] = {}
        self._classes: dict[str, Classes] = {}

    def add(self, feed: Feed, reference: Mapping[str, Any], candidate: Mapping[str, Any]) -> None:
        """One batch: what went in, and the outputs of both by name."""
        for name, expected in reference.items():
            found = candidate[name]
            self._outputs.setdefault(name, _Output(name)).add(expected, found)
            if isinstance(expected, np.ndarray) and isinstance(found, np.ndarray):
                self._classes.setdefault(name, Classes(self._labels)).add(expected, found, feed.values())

    def result(self, samples: int) -> Quality:
        """The sums as figures. ``samples`` is how many were fed in all."""
        outputs = [o.result() for o in self._outputs.values() if o.compared]
        judged = [o for o in outputs if o.equal is None] or outputs
        notes = [note for o in self._outputs.values() for note in o.notes()]
        answers = self._answers(samples)
        right: Accuracies = (None, None, None, None)
        if self._labels is not None:
            if misfit := answers.misfit():
                notes.append(f"labels not used: {misfit}")
            else:
                right = answers.accuracies()
        return Quality(
            tuple(outputs),
            min((o.sqnr_db for o in judged), default=math.nan),
            min((o.cosine for o in judged), default=math.nan),
            answers.agree / answers.rows if answers.rows else None,
            *right,
            tuple(notes),
        )

    def _answers(self, samples: int) -> Classes:
        """The output that looks like a classifier's or a language model's answer; an empty count if none does.

        A classifier gives one row a sample. With labels it is the first whose classes they can be; without, it must be
        the only output: boxes, states and embeddings come in rows as well.
        """
        tokens = [c for c in self._classes.values() if c.kind == "tokens"]
        rows = [c for c in self._classes.values() if c.kind in ("scores", "class") and c.rows == samples]
        if self._labels is not None and rows:
            return next((c for c in rows if not c.misfit()), rows[0])
        return next(iter(tokens or (rows if len(self._outputs) == 1 else ())), Classes(self._labels))


class _Output:
    """Sums over one output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.compared = False
        self._names_things = False
        self._signal = self._noise = self._energy = self._product = self._largest = self._peak = 0.0
        self._elements = self._equal = self._lost = self._undefined = 0
        self._batches = self._other_shape = self._no_tensor = 0

    def add(self, expected: Any, found: Any) -> None:
        self._batches += 1
        if not isinstance(expected, np.ndarray) or not isinstance(found, np.ndarray):
            self._no_tensor += 1
            return
        self.compared = True
        self._names_things = not _is_number(expected.dtype)
        self._elements += expected.size
        if expected.shape != found.shape:
            # Nothing says which elements belong together: as if the candidate had answered 0 (or always wrong).
            self._other_shape += 1
            found = np.zeros_like(expected)
        elif self._names_things:
            self._equal += int(np.count_nonzero(expected == found))
        if not self._names_things:
            for start in range(0, expected.size, _CHUNK):
                a, b = (x.ravel()[start : start + _CHUNK].astype(np.float64) for x in (expected, found))
                self._add_numbers(a, b)

    def _add_numbers(self, a: Array, b: Array) -> None:
        finite = np.isfinite(a)
        both = finite & np.isfinite(b)
        if not both.all():
            self._undefined += int(np.count_nonzero(~finite))
            self._lost += int(np.count_nonzero(finite & ~both))
            a, b = a[both], b[both]
        error = a - b
        self._peak = max(self._peak, float(np.abs(a).max(initial=0.0)))
        self._signal += float(a @ a)
        self._noise += float(error @ error)
        self._energy += float(b @ b)
        self._product += float(a @ b)
        self._largest = max(self._largest, float(np.abs(error).max(initial=0.0)))

    def result(self) -> OutputQuality:
        if self._names_things:
            equal = self._equal / self._elements if self._elements else float(self._other_shape == 0)
            return OutputQuality(self.name, _decibels(1.0, 1.0 - equal), equal, math.nan, equal)
        if self._lost:
            return OutputQuality(self.name, -math.inf, 0.0, math.inf)
        norm = math.sqrt(self._signal) * math.sqrt(self._energy)
        cosine = min(self._product / norm, 1.0) if norm else float(self._signal == self._energy)
        return OutputQuality(self.name, _decibels(self._signal, self._noise), cosine, self._largest)

    def notes(self) -> Iterator[str]:
        if self._no_tensor:
            yield f"the output '{self.name}' is no tensor: not compared"
        if self._lost:
            yield f"NaN or infinity came into '{self.name}' in {words.many(self._lost, 'place')}"
        if self._undefined:
            places = words.many(self._undefined, "place")
            yield f"the original itself gives NaN or infinity in {places} of '{self.name}': left out"
        if self._other_shape:
            yield (
                f"'{self.name}' has another shape than the original's in {self._other_shape} of {self._batches} "
                "batches: counted as wrong"
            )
        if self._noise and self._peak < _FAINT:
            yield (
                f"these samples hardly raise '{self.name}', {self._peak:.1g} at most in the original: "
                "its signal to noise says little"
            )


def _is_number(dtype: np.dtype[Any]) -> bool:
    """Floats (ml_dtypes' kinds included), and the small integers that quantized signals and images are made of."""
    return dtype.kind in "fV" or (dtype.kind in "iu" and dtype.itemsize <= 2)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
