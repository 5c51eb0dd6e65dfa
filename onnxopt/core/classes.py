"""Answers of classifiers and language models: how many stay, and how many are right."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, TypeAlias

import numpy as np

from onnxopt.graph.signature import Array
from onnxopt.report.words import share

# An output [N, T, V] with at least so many entries per token is one over a vocabulary.
_VOCABULARY = 32
_TOP = 5

Kind: TypeAlias = Literal["scores", "class", "tokens"]
Accuracies: TypeAlias = tuple[float | None, float | None, float | None, float | None]


class Classes:
    """Counts over one output, as far as it looks like scores of classes, the class itself, or scores of next tokens.

    ``labels``: (samples,) class indices in the order of the samples, or None. ``kind`` is None where the output looks
    like none of these. ``rows`` are answers seen, ``agree`` those that both models gave.
    """

    def __init__(self, labels: Array | None = None) -> None:
        self.kind: Kind | None = None
        self.rows = self.agree = 0
        self._labels = labels
        self._width = 0
        self._batches = 0
        # candidate, reference
        self._right = np.zeros(2, np.int64)
        self._right_top = np.zeros(2, np.int64)

    def add(self, expected: Array, found: Array, inputs: Iterable[Array]) -> None:
        """One batch of an output of the reference and the candidate, and what went in."""
        kind = _kind(expected, list(inputs), self._labels is not None)
        self.kind = kind if self._batches == 0 or kind == self.kind else None
        self._batches += 1
        if self.kind is None:
            return
        self._width = 1 if kind == "class" else expected.shape[-1]
        a = expected.reshape(-1, self._width)
        b = found.reshape(-1, self._width) if found.shape == expected.shape else np.full(a.shape, math.nan)
        answers = (_answers(b), _answers(a))
        self.agree += int(np.count_nonzero(answers[0] == answers[1]))
        if self._labels is not None and kind != "tokens":
            labels = self._labels[self.rows : self.rows + len(a)]
            for i, scores in enumerate((b, a)):
                if len(labels) == len(a):
                    self._right[i] += np.count_nonzero(answers[i] == labels)
                if len(labels) == len(a) and self._width > _TOP:
                    self._right_top[i] += _among_top(scores, labels)
        self.rows += len(a)

    def accuracies(self) -> Accuracies:
        """Shares that are right: candidate, reference; then with the label among the top five, if there are more."""
        right, top = self._right / self.rows, self._right_top / self.rows
        top_five = (float(top[0]), float(top[1])) if self._width > _TOP else (None, None)
        return float(right[0]), float(right[1]), *top_five

    def misfit(self) -> str:
        """Why the labels cannot be the classes that the model names; empty if they can.

        The reference must be right more often than chance explains (three standard deviations): labels with another
        numbering would say of any candidate that nothing was lost.
        """
        if self._labels is None or self.kind not in ("scores", "class"):
            return "no output looks like scores of classes"
        low, high = int(self._labels.min()), int(self._labels.max())
        if low < 0 or (self._width > 1 and high >= self._width):
            return f"they run from {low} to {high}, and the model knows {self._width} classes from 0"
        chance = 1 / max(self._width, high + 1, 2)
        accuracy = float(self._right[1] / self.rows)
        if accuracy <= chance + 3 * math.sqrt(chance * (1 - chance) / self.rows):
            return f"the original itself is right for {share(accuracy)} only: are the classes numbered otherwise?"
        return ""


def _kind(output: Array, inputs: list[Array], labelled: bool) -> Kind | None:
    number = output.dtype.kind == "f" or output.dtype in (np.uint8, np.int8)
    shape = output.shape
    if number and output.ndim == 2 and shape[1] > 1:
        # An output like an input is its reconstruction, unless there are labels to say otherwise.
        return "scores" if labelled or all(x.shape != shape for x in inputs) else None
    if number and output.ndim == 3 and shape[2] >= _VOCABULARY:
        return "tokens" if any(x.dtype.kind in "iu" and x.shape == shape[:2] for x in inputs) else None
    if output.dtype in (np.int32, np.int64) and output.ndim in (1, 2) and shape[1:] in ((), (1,)):
        return "class"
    return None


def _answers(scores: Array) -> Array:
    """(rows, classes) -> (rows,): the best class, -1 where there is NaN; a single column holds the answers."""
    if scores.shape[1] == 1:
        return np.asarray(scores[:, 0])
    best = scores.argmax(1)
    return np.where(np.isnan(scores).any(1), -1, best) if scores.dtype.kind == "f" else best


def _among_top(scores: Array, labels: Array) -> int:
    """In how many rows are fewer than five scores above the label's?"""
    inside = (labels >= 0) & (labels < scores.shape[1])
    scores, labels = scores[inside], labels[inside]
    of_label = scores[np.arange(len(labels)), labels]
    return int(np.count_nonzero((scores > of_label[:, None]).sum(1)[~np.isnan(of_label)] < _TOP))
