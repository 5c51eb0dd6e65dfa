"""A matrix as few levels: which levels, and which of them each weight takes.

Levels are found by k-means along a line, where it can be solved exactly: in an optimum every level stands for a run of
neighbouring values, so the runs are found by dynamic programming (Fisher, "On grouping for maximum homogeneity", 1958;
Wang and Song, "Ckmeans.1d.dp", 2011), here over at most 512 bins, and then moved value by value (Lloyd, 1982).

Two and three levels per channel have closed forms: the mean magnitude with the sign (Rastegari et al., "XNOR-Net",
2016), and the mean of the largest magnitudes, as many as lose least (Li and Liu, "Ternary weight networks", 2016, who
approximate how many; sorted, all cuts can be compared).

With the second moments of the inputs, weights take levels one after the other, the later ones making good for the
earlier (``rounding.round_to``), and levels and scales are solved anew by least squares for the codes then found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxopt.numerics.least_squares import Floats
from onnxopt.numerics.rounding import output_error, round_to

Codes: TypeAlias = npt.NDArray[np.uint8]
# The levels of every channel: free and as many as said, or -1, 0 and 1, or -1 and 1, times its scale.
Form: TypeAlias = int | Literal["ternary", "binary"]
_FIXED = {"ternary": (-1.0, 0.0, 1.0), "binary": (-1.0, 1.0)}

_BINS = 512
_LLOYD = 100
_TURNS = 3
# Levels are solved anew up to so many; more of them lie close enough.
_SOLVED = 32
_TINY = 1e-30


@dataclass(frozen=True)
class Book:
    """``levels[codes] * scale``: codes (groups, outputs, inputs), levels (L,) rising, scale (groups, outputs, 1)."""

    codes: Codes
    levels: Floats
    scale: Floats

    @property
    def values(self) -> Floats:
        return np.asarray(self.levels[self.codes] * self.scale)


@dataclass(frozen=True)
class Shelf:
    """A book for each part of the channels: ``levels[book, codes] * scale``, levels (books, L), book and scale
    (groups, outputs, 1). Books with fewer levels than others repeat their last."""

    codes: Codes
    levels: Floats
    scale: Floats
    book: npt.NDArray[np.intp]

    @property
    def values(self) -> Floats:
        return np.asarray(self.levels[self.book, self.codes] * self.scale)


Part: TypeAlias = tuple[slice, slice]


def parts(groups: int, outputs: int, size: int) -> list[Part]:
    """Which groups and which of their outputs make at most ``size`` channels each, or one group's; 0: all of them."""
    if not size or groups * outputs <= size:
        return [(slice(0, groups), slice(0, outputs))]
    many, few = max(1, size // outputs), min(size, outputs)
    starts = [(g, o) for g in range(0, groups, many) for o in range(0, outputs, few)]
    return [(slice(g, g + many), slice(o, o + few)) for g, o in starts]


def shelf(solve: Callable[[Part], Book], groups: int, outputs: int, size: int) -> Shelf:
    """The books that ``solve`` finds for each of the ``parts``."""
    where = parts(groups, outputs, size)
    books = [solve(part) for part in where]
    most = max(len(b.levels) for b in books)
    codes = np.empty((groups, outputs, books[0].codes.shape[-1]), np.uint8)
    scale, number = np.empty((groups, outputs, 1)), np.empty((groups, outputs, 1), np.intp)
    for i, (part, book) in enumerate(zip(where, books, strict=True)):
        codes[part], scale[part], number[part] = book.codes, book.scale, i
    levels = np.stack([np.pad(b.levels, (0, most - len(b.levels)), "edge") for b in books])
    return Shelf(codes, levels, scale, number)


def kmeans(values: Floats, weights: Floats, levels: int) -> Floats:
    """At most ``levels`` numbers, rising, so that the weighted squared distance of values to the next is least.

    Exact for up to 512 different values; ``values`` and ``weights`` (not negative) have the same shape.
    """
    order = np.argsort(values, axis=None)
    x, w = values.reshape(-1)[order], np.maximum(weights.reshape(-1)[order], _TINY)
    bounds = _bins(x)
    if len(bounds) - 1 <= levels and np.array_equal(x[bounds[:-1]], x[bounds[1:] - 1]):
        return np.asarray(x[bounds[:-1]])
    shift = float(np.average(x, weights=w))
    sums = np.zeros((3, len(x) + 1))
    np.cumsum([w, w * (x - shift), w * np.square(x - shift)], axis=1, out=sums[:, 1:])
    ends = bounds[_runs(sums[:, bounds], min(levels, len(bounds) - 1))]
    middle = _means(sums, ends)
    for _ in range(_LLOYD):
        cuts = np.searchsorted(x - shift, (middle[1:] + middle[:-1]) / 2)
        moved = np.concatenate(([0], cuts, [len(x)]))
        if np.array_equal(moved, ends) or (np.diff(moved) == 0).any():
            break
        ends, middle = moved, _means(sums, moved)
    return np.asarray(middle + shift)


def nearest(values: Floats, levels: Floats) -> Codes:
    """The number of the level next to each value; ``levels`` rise."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, values).astype(np.uint8)


def plain(weight: Floats, form: Form, power: Floats | None = None, *, per_channel: bool = True) -> Book:
    """Levels and scales for the weights (groups, outputs, inputs) themselves, each counted with the ``power`` of its
    input (groups, inputs) if that is given."""
    counted = np.ones((weight.shape[0], 1, weight.shape[2])) if power is None else power[:, None, :]
    counted = np.broadcast_to(counted, weight.shape)
    if isinstance(form, str):
        scale = _magnitude(weight, counted, form, per_channel)
        levels = np.array(_FIXED[form])
    else:
        spread = np.sqrt(np.square(weight).mean(axis=-1, keepdims=True)) if per_channel else np.ones((1, 1, 1))
        scale = np.broadcast_to(np.where(spread > 0, spread, 1.0), (*weight.shape[:2], 1))
        levels = kmeans(weight / scale, counted * np.square(scale), form)
    return Book(nearest(weight / np.maximum(scale, _TINY), levels), levels, scale)


def for_outputs(weight: Floats, gram: Floats, start: Book, form: Form, *, per_channel: bool = True) -> Book:
    """Codes, levels and scales with a small error of the outputs, never a larger one than that of ``start``.

    ``gram`` (groups, inputs, inputs) holds the second moments of the inputs, times any number.
    """
    best, least = start, output_error(weight - start.values, gram).sum()
    book = start
    for _ in range(_TURNS):
        scale, levels = np.maximum(book.scale, _TINY), book.levels
        taken = round_to(weight / scale, gram, lambda x, levels=levels: levels[nearest(x, levels)])  # type: ignore[misc]  # bound now
        book = Book(nearest(taken, levels), levels, scale)
        if not isinstance(form, str) and len(levels) <= _SOLVED:
            book = _with_levels(weight, gram, book)
        if per_channel or isinstance(form, str):
            book = _with_scale(weight, gram, book, per_channel)
        error = output_error(weight - book.values, gram).sum()
        if not error < least:
            break
        best, least = book, error
    return best


def _bins(x: Floats) -> npt.NDArray[np.intp]:
    """Where bins of sorted values begin, and their end: each value its own, or as many bins as are allowed, half of
    them of the same number of values, half of the same width."""
    own = np.flatnonzero(np.concatenate(([True], x[1:] != x[:-1], [True])))
    if len(own) - 1 <= _BINS:
        return own
    wide = np.searchsorted(x, np.linspace(x[0], x[-1], _BINS // 2, endpoint=False))
    full = np.linspace(0, len(x), _BINS // 2 + 1).astype(np.intp)
    return np.unique(np.concatenate((wide, full)))


def _runs(sums: Floats, levels: int) -> npt.NDArray[np.intp]:
    """The bounds of the ``levels`` runs of bins with the least sum of squares; ``sums`` (3, bins + 1) are cumulated."""
    mass, first, second = sums[:, None, :] - sums[:, :, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(mass > 0, np.maximum(second - np.square(first) / mass, 0.0), np.inf)
    least = cost[0]
    ways = []
    for _ in range(levels - 1):
        total = least[:, None] + cost
        ways.append(total.argmin(axis=0))
        least = total.min(axis=0)
    ends = [sums.shape[1] - 1]
    for way in reversed(ways):
        ends.append(int(way[ends[-1]]))
    return np.array([0, *ends[::-1]], np.intp)


def _means(sums: Floats, ends: npt.NDArray[np.intp]) -> Floats:
    mass, first, _ = np.diff(sums[:, ends], axis=1)
    return np.asarray(first / np.maximum(mass, _TINY))


def _magnitude(weight: Floats, counted: Floats, form: str, per_channel: bool) -> Floats:
    """The scale with which -1, 0 and 1, or -1 and 1, lose least: (groups, outputs, 1)."""
    flat = (-1, weight.shape[2]) if per_channel else (1, -1)
    size, counts = np.abs(weight).reshape(flat), counted.reshape(flat)
    if form == "ternary":
        order = np.argsort(-size, axis=-1, kind="stable")
        size, counts = np.take_along_axis(size, order, -1), np.take_along_axis(counts, order, -1)
        mass, total = np.cumsum(counts, axis=-1), np.cumsum(counts * size, axis=-1)
        gain = np.square(total) / np.maximum(mass, _TINY)
        at = gain.argmax(axis=-1)[:, None]
        found = np.take_along_axis(total, at, -1) / np.maximum(np.take_along_axis(mass, at, -1), _TINY)
    else:
        found = (counts * size).sum(axis=-1, keepdims=True) / np.maximum(counts.sum(axis=-1, keepdims=True), _TINY)
    return np.broadcast_to(found.reshape((*weight.shape[:2], 1) if per_channel else (1, 1, 1)), (*weight.shape[:2], 1))


def _with_levels(weight: Floats, gram: Floats, book: Book) -> Book:
    """The levels that suit the codes best: least squares over all channels at once, in as many unknowns as levels."""
    shares = [np.where(book.codes == k, book.scale, 0.0) for k in range(len(book.levels))]
    wanted = weight @ gram
    normal, right = np.empty((len(shares), len(shares))), np.array([np.vdot(s, wanted) for s in shares])
    for k, share in enumerate(shares):
        turned = share @ gram
        normal[k, k:] = normal[k:, k] = [np.vdot(turned, s) for s in shares[k:]]
    ridge = 1e-9 * np.trace(normal) / len(shares) + _TINY
    found = np.linalg.solve(normal + ridge * np.eye(len(shares)), right + ridge * book.levels)
    order = np.argsort(found, kind="stable")
    return replace(book, levels=found[order], codes=np.argsort(order).astype(np.uint8)[book.codes])


def _with_scale(weight: Floats, gram: Floats, book: Book, per_channel: bool) -> Book:
    """The scales that suit the codes and levels best, each positive."""
    unit = book.levels[book.codes]
    turned = unit @ gram
    fits, power = (turned * weight).sum(axis=-1, keepdims=True), (turned * unit).sum(axis=-1, keepdims=True)
    if not per_channel:
        fits, power = fits.sum(keepdims=True), power.sum(keepdims=True)
    better = np.broadcast_to(np.divide(fits, power, out=np.zeros_like(fits), where=power > 0), book.scale.shape)
    return replace(book, scale=np.where(better > 0, better, book.scale))
