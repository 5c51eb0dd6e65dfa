"""One-pass summaries of a tensor's values that add up exactly.

``a + b`` is the summary of all the values of both: integer counts and extremes only, no float sums, so merging is
associative and commutative to the last bit and shards give the same result in any order.

The histogram needs no range in advance. Its bins are a power of two wide and start at zero; when a larger value turns
up, the width doubles and neighbours are added, which is what binning everything at the final width would have given.
Zero as the anchor suits what it is for: a quantizer's range always contains zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.numerics.ranges import Range

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]

# Bins on either side of zero; the largest magnitude lies in the upper half of them, so 2048 to 4096 are in use.
HALF = 4096
# 2^-exponent must be a float32; values under 2^-100 all share the bins next to zero.
_SMALLEST = -100
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Histogram:
    """``counts[HALF + i]`` values in [i, i + 1) * 2^exponent for i >= 0, in (i, i + 1] * 2^exponent for i < 0.

    ``zeros`` of them are exactly zero (they are in the counts too). ``sampled``: only some of the values were counted,
    the same positions in every sample.
    """

    exponent: int = _SMALLEST
    counts: Counts = field(default_factory=lambda: np.zeros(2 * HALF, np.int64))
    zeros: int = 0
    sampled: bool = False

    @classmethod
    def of(cls, values: Array, magnitude: float, sampled: bool = False) -> Histogram:
        """Of finite ``values`` of any shape and type, taken as float32; none is larger than ``magnitude``."""
        if values.dtype != np.float32:
            values = np.clip(values.astype(np.float64), -_LARGEST, _LARGEST).astype(np.float32)
        fraction, top = np.frexp(np.float32(min(magnitude, _LARGEST)))
        # Nothing but zeros fits any width, so it must not set one.
        exponent = max(int(top) - (HALF.bit_length() - 1), _SMALLEST) if fraction else _SMALLEST
        # Towards zero, then down by one below zero: a sign and a magnitude, so that halving is exact for both signs.
        index = (values * np.float32(2.0**-exponent)).astype(np.intp)
        index -= values < 0
        index += HALF
        counts = np.bincount(index.ravel(), minlength=2 * HALF).astype(np.int64, copy=False)
        return cls(exponent, counts, values.size - int(np.count_nonzero(values)), sampled)

    def __add__(self, other: Histogram) -> Histogram:
        exponent = max(self.exponent, other.exponent)
        counts = self._coarsened(exponent) + other._coarsened(exponent)
        return Histogram(exponent, counts, self.zeros + other.zeros, self.sampled or other.sampled)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        return np.arange(-HALF, HALF + 1, dtype=np.float64) * 2.0**self.exponent

    @property
    def nonzero(self) -> Counts:
        """The counts without the values that are exactly zero."""
        counts = self.counts.copy()
        counts[HALF] -= self.zeros
        return counts

    def _coarsened(self, exponent: int) -> Counts:
        merged = min(1 << min(exponent - self.exponent, HALF.bit_length()), HALF)
        if merged == 1:
            return self.counts
        counts = np.zeros_like(self.counts)
        kept = HALF // merged
        counts[HALF - kept : HALF + kept] = self.counts.reshape(-1, merged).sum(axis=1)
        return counts


@dataclass(frozen=True)
class Statistics:
    """What is known of a tensor's values: how many, the extremes of the finite ones (inf and -inf when there are none),
    and how many are NaN and infinite. ``histogram`` is None when it was not asked for."""

    count: int = 0
    minimum: float = np.inf
    maximum: float = -np.inf
    nan_count: int = 0
    inf_count: int = 0
    histogram: Histogram | None = None

    @classmethod
    def of(cls, x: Array, samples: int = 1, limit: int | None = None) -> Statistics:
        """Of ``x``, which holds ``samples`` samples along its first axis (ignored where that does not divide).

        At most ``limit`` values of each sample go into the histogram, evenly spread over it (None: no histogram); the
        extremes and the other counts are always of all values.
        """
        x = np.asarray(x)
        if x.dtype.kind not in "fiub":  # bfloat16 and the 8 bit floats
            x = x.astype(np.float32)
        if x.size == 0:
            return cls(histogram=None if limit is None else Histogram())
        lo, hi = float(x.min()), float(x.max())
        nans = infs = 0
        if not (np.isfinite(lo) and np.isfinite(hi)):  # NaN and Inf show in the extremes: a second look only then
            finite = x[np.isfinite(x)]
            nans = int(np.isnan(x).sum())
            infs = x.size - finite.size - nans
            lo, hi = float(finite.min(initial=np.inf)), float(finite.max(initial=-np.inf))
        found = None if limit is None else Histogram()
        if limit is not None and lo <= hi:
            spread, sampled = _spread(x, samples, limit)
            if nans or infs:
                spread = spread[np.isfinite(spread)]
            found = Histogram.of(spread, max(abs(lo), abs(hi)), sampled)
        return cls(x.size, lo, hi, nans, infs, found)

    def __add__(self, other: Statistics) -> Statistics:
        both = None if self.histogram is None or other.histogram is None else self.histogram + other.histogram
        return Statistics(
            self.count + other.count,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            self.nan_count + other.nan_count,
            self.inf_count + other.inf_count,
            both,
        )

    @property
    def exact(self) -> Range | None:
        """The minimum and maximum; None when no finite value was seen."""
        return Range(self.minimum, self.maximum) if self.minimum <= self.maximum else None


def _spread(x: Array, samples: int, limit: int) -> tuple[Array, bool]:
    """Every stride-th value of every sample; the stride has no factor in common with the sample's size.

    So it walks through all channels and columns, and depends on the sample alone, not on how samples are batched.
    """
    rows = x.reshape(samples if x.ndim and samples and x.shape[0] % samples == 0 else 1, -1)
    size = rows.shape[1]
    stride = -(-size // limit)
    if stride <= 1:
        return rows, False
    while gcd(stride, size) > 1:
        stride += 1
    return np.ascontiguousarray(rows[:, ::stride]), True
