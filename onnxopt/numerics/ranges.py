"""Which range (lo, hi) to quantize, given the exact extremes and a histogram.

A histogram is ``counts`` over equal bins between ``edges`` (len(counts) + 1 of them, with 0.0 among them), *without*
the values that are exactly zero: zero is always represented exactly, so the half of a Relu's output that is zero must
not vote on where to clip the other half.

A wide range wastes levels, a narrow one clips. ``percentile`` clips a fixed share of each tail; ``mse`` minimises the
expected squared error of the quantizer itself; ``entropy`` minimises the Kullback-Leibler divergence between the
values and the quantized values (Migacz, "8-bit inference with TensorRT", 2017), here for either side of zero. It
knows the shape of a distribution and not the size of an error, so where values crowd near zero it clips hard.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Counts: TypeAlias = npt.NDArray[np.int64]
Cost: TypeAlias = Callable[[Floats, Floats], Floats]
Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)

PERCENTILE = 99.999
# Factors on an end of the range. Neighbours on the first grid are 1/7 apart, which is what the second one covers.
_COARSE = np.geomspace(1.0, 1 / 256, 42)
_FINE = np.linspace(0.86, 1.14, 29)


class Range(NamedTuple):
    """``lo <= hi``, both finite."""

    lo: float
    hi: float

    def with_zero(self) -> Range:
        """Widened to hold zero, as the range of a quantizer must."""
        return Range(min(self.lo, 0.0), max(self.hi, 0.0))


def choose_range(method: Method, exact: Range, counts: Counts, edges: Floats, levels: int = 256) -> Range:
    """The range for a quantizer of ``levels`` levels: it holds zero, and is never wider than that takes.

    ``exact`` are the minimum and maximum of all values.
    """
    if method == "minmax" or not counts.any():
        return exact.with_zero()
    if method == "percentile":
        return percentile(exact, counts, edges)
    cost = {"mse": _squared_error, "entropy": _divergence}[method](counts, edges, levels)
    return _search(cost, exact.with_zero())


def percentile(exact: Range, counts: Counts, edges: Floats, percent: float = PERCENTILE) -> Range:
    """Leave ``100 - percent`` percent of the non-zero values outside, at each end; linear within a bin."""
    below = np.concatenate(([0], np.cumsum(counts)))
    tail = (1 - percent / 100) * below[-1]
    lo, hi = np.interp([tail, below[-1] - tail], below, edges)
    widest = exact.with_zero()
    return Range(max(widest.lo, float(lo)), min(widest.hi, float(hi))).with_zero()


def _search(cost: Cost, widest: Range) -> Range:
    """Minimise ``cost(lo, hi)``, moving one end at a time: on a coarse grid, then on a fine one.

    The expected squared error is convex in (lo, hi) up to rounding, so going end by end finds its minimum; where one
    end is zero there is but one to move, and once is enough.
    """
    lo, hi = widest
    rounds = 2 if lo < 0 < hi else 1
    for grid, fine in [(_COARSE, False)] * rounds + [(_FINE, True)] * rounds:
        if widest.hi > 0:
            highs = np.minimum((hi if fine else widest.hi) * grid, widest.hi)
            hi = float(highs[np.argmin(cost(np.full_like(highs, lo), highs))])
        if widest.lo < 0:
            lows = np.maximum((lo if fine else widest.lo) * grid, widest.lo)
            lo = float(lows[np.argmin(cost(lows, np.full_like(lows, hi)))])
    return Range(lo, hi)


def _squared_error(counts: Counts, edges: Floats, levels: int) -> Cost:
    """Sum over the values of (x - quantized x)^2 less the constant sum of x^2; each bin is taken as evenly filled.

    With q_k the levels and cell k what rounds to q_k (the outer cells reach to infinity, which is the clipping), that
    is sum_k q_k^2 n_k - 2 q_k m_k: only the count n and the first moment m of every cell are needed.
    """
    width = edges[1] - edges[0]
    left = np.rint(edges / width)
    below = np.concatenate(([0.0], np.cumsum(counts)))
    moment = np.concatenate(([0.0], np.cumsum(counts * (left[:-1] + 0.5))))

    def cost(lo: Floats, hi: Floats) -> Floats:
        step = np.maximum(hi - lo, 1e-300)[:, None] / ((levels - 1) * width)
        q = (np.arange(levels) + np.rint(lo[:, None] / (step * width))) * step
        bound = np.clip((q[:, 1:] + q[:, :-1]) / 2, left[0], left[-1])
        i = np.minimum((bound - left[0]).astype(np.intp), len(counts) - 1)
        n = below[i] + counts[i] * (bound - left[i])
        m = moment[i] + counts[i] * (bound - left[i]) * (bound + left[i]) / 2
        # Summed by parts, so that no differences of cells are formed.
        gap = np.diff(q, axis=1)
        inner = (gap * (2 * m - (q[:, 1:] + q[:, :-1]) * n)).sum(axis=1)
        return np.asarray(inner + q[:, -1] ** 2 * below[-1] - 2 * q[:, -1] * moment[-1])

    return cost


def _divergence(counts: Counts, edges: Floats, levels: int) -> Cost:
    """KL divergence of P, the histogram clipped to [lo, hi] with what is outside added to its end bins, from Q.

    Q gives every level's own count evenly to those bins of the level that P fills. What chance alone makes counts
    within a level differ is taken off (half for every filled bin but one a level, as in a G-test), or few samples would
    favour narrow ranges. Ranges with less than two bins a level are not judged (infinite), because a bin tells nothing
    about what happens inside it.
    """
    width = edges[1] - edges[0]
    total = float(counts.sum())
    below = np.concatenate(([0.0], np.cumsum(counts)))
    filled = np.concatenate(([0], np.cumsum(counts > 0)))
    information = np.concatenate(([0.0], np.cumsum(_xlogx(counts.astype(np.float64)))))

    def cost(lo: Floats, hi: Floats) -> Floats:
        first = np.floor((lo - edges[0]) / width).astype(np.intp).clip(0, len(counts) - 1)
        last = np.ceil((hi - edges[0]) / width).astype(np.intp).clip(first + 1, len(counts))
        bound = first[:, None] + (np.arange(levels + 1) * (last - first)[:, None]) // levels
        kept, bins = np.diff(below[bound], axis=1), np.diff(filled[bound], axis=1)
        outside = np.zeros_like(kept)
        p_log_p = information[last] - information[first]
        for end, level, extra in ((first, 0, below[first]), (last - 1, -1, total - below[last])):
            outside[:, level] += extra
            bins[:, level] += (counts[end] == 0) & (extra > 0)
            p_log_p += _xlogx(counts[end] + extra) - _xlogx(counts[end].astype(np.float64))
        log_q = np.log(np.maximum(kept, 0.5) / np.maximum(bins, 1) / kept.sum(axis=1, keepdims=True).clip(0.5))
        chance = (bins.sum(axis=1) - (bins > 0).sum(axis=1)) / 2
        divergence = (p_log_p - ((kept + outside) * log_q).sum(axis=1) - chance) / total - np.log(total)
        return np.where(last - first >= 2 * levels, divergence, np.inf)

    return cost


def _xlogx(x: Floats) -> Floats:
    return np.asarray(x * np.log(np.maximum(x, 1.0)))
