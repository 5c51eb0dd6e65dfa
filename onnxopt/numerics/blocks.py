"""Integers of few bits for weights, with a scale and a zero point for each block of a row.

``value = (integer - zero) * scale``. Integers here are signed; whoever stores unsigned ones adds 2^(bits - 1) to
integers and zero points alike. Zero points are integers, since that is what DequantizeLinear takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Real = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int8]

_SMALLEST = 2.0**-60
# Half-quadratic splitting: the norm, where the weight of the split begins, how it grows, how often at most.
# Its authors take 0.7 for the norm, which differs by a hundredth of a decibel and needs a power instead of a root.
_BETA, _GROWTH, _TURNS = 10.0, 1.01, 5
# Shares of the whole range that a search tries.
_SHARES = tuple(np.linspace(0.95, 0.55, 9))
_FEW_SHARES = (0.9, 0.8, 0.7)


@dataclass(frozen=True)
class Format:
    """``bits`` 8 or 4; symmetric: all zero points are 0."""

    bits: int
    symmetric: bool

    @property
    def lowest(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        return (1 << (self.bits - 1)) - 1


class Blocks:
    """Which columns of a row share a scale: ``of`` (columns,) is the block of each, 0 to ``count`` - 1."""

    def __init__(self, of: npt.NDArray[np.intp]) -> None:
        self.of = of
        self.count = int(of.max(initial=-1)) + 1

    @classmethod
    def along(cls, inputs: int, block: int, kernel: int = 1) -> Blocks:
        """Of ``inputs`` x ``kernel`` columns those of ``block`` inputs at one place in the kernel; 0: all columns."""
        if not block:
            return cls(np.zeros(inputs * kernel, np.intp))
        return cls((np.arange(inputs)[:, None] // block * kernel + np.arange(kernel)).reshape(-1))

    @cached_property
    def _order(self) -> npt.NDArray[np.intp]:
        return np.argsort(self.of, kind="stable")

    @cached_property
    def _starts(self) -> npt.NDArray[np.intp]:
        return np.searchsorted(self.of[self._order], np.arange(self.count))

    @cached_property
    def _size(self) -> int:
        """Columns in each block, where they lie side by side and are as many in all; else 0."""
        size = len(self.of) // max(self.count, 1)
        return size if np.array_equal(self.of, np.arange(len(self.of)) // max(size, 1)) else 0

    def fold(self, values: Real, how: np.ufunc = np.add) -> Real:
        """(rows, columns) to (rows, blocks)."""
        if self._size:
            return np.asarray(how.reduce(values.reshape(len(values), self.count, self._size), axis=2))
        return np.asarray(how.reduceat(values[:, self._order], self._starts, axis=1))

    def spread(self, parameter: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(rows, blocks) to (rows, columns)."""
        return np.asarray(np.repeat(parameter, self._size, axis=1) if self._size else parameter[:, self.of])


class Grid(NamedTuple):
    """``scale`` float32 and ``zero`` int8, both (rows, blocks)."""

    scale: npt.NDArray[np.float32]
    zero: Integers


class Coded(NamedTuple):
    """``steps`` (rows, columns) int8 on a grid."""

    steps: Integers
    grid: Grid
    blocks: Blocks

    def values(self) -> npt.NDArray[np.float32]:
        """The weights as the runtime sees them."""
        zero, scale = (self.blocks.spread(p) for p in (self.grid.zero, self.grid.scale))
        return np.asarray((self.steps.astype(np.float32) - zero) * scale, np.float32)


def full_range(weight: Real, blocks: Blocks, form: Format, share: float = 1.0) -> Grid:
    """The grid on which each block just fits, or that ``share`` of it."""
    top = np.maximum(blocks.fold(weight, np.maximum), 0) * share
    bottom = np.minimum(blocks.fold(weight, np.minimum), 0) * share
    if form.symmetric:
        scale = _stored(np.maximum(top / form.highest, bottom / form.lowest))
        return Grid(scale, np.zeros(scale.shape, np.int8))
    scale = _stored((top - bottom) / (form.highest - form.lowest))
    return Grid(scale, _integers(form.lowest - bottom / scale, form))


def nearest(weight: Real, grid: Grid, blocks: Blocks, form: Format) -> Coded:
    """Each weight rounded by itself."""
    steps = weight / blocks.spread(grid.scale) + blocks.spread(grid.zero)
    return Coded(_integers(steps, form), grid, blocks)


def squared_error(weight: Real, coded: Coded, power: Real | None = None) -> Real:
    """By row and block; ``power`` (columns,) weighs the columns."""
    square = np.square(weight - coded.values())
    return coded.blocks.fold(square if power is None else square * power)


def searched(weight: Real, blocks: Blocks, form: Format, power: Real, shares: Sequence[float] = _SHARES) -> Grid:
    """Of the grids that hold a share of each block, the one with the least squared error, columns weighed by ``power``
    (columns,): where few large weights lie apart, they are cut off and the others get finer steps."""
    found = full_range(weight, blocks, form)
    least = squared_error(weight, nearest(weight, found, blocks, form), power)
    for share in shares:
        grid = full_range(weight, blocks, form, share)
        error = squared_error(weight, nearest(weight, grid, blocks, form), power)
        better = error < least
        found = _chosen(better, grid, found)
        least = np.minimum(least, error)
    return found


def half_quadratic(weight: Real, blocks: Blocks, form: Format, turns: int = _TURNS) -> Coded:
    """A grid that outliers do not stretch, found without data; no block has a larger squared error than ``nearest``.

    Least is |W - Q(W)|_p with p < 1, which forgives the large errors of few weights. Split into halves: errors E are
    shrunk, sign(x) max(0, |x| - |x|^(p-1) / beta) with x = W - Q(W) in steps, and the grid is fitted to W - E by
    least squares (Badri and Shaji, "Half-quadratic quantization of large machine learning models", 2023). There the
    zero point moves, as a real number; here scale and zero point both do, and the zero point is then rounded.
    """
    weight = np.asarray(weight, np.float32)
    best = searched(weight, blocks, form, np.ones(weight.shape[1], np.float32), _FEW_SHARES)
    coded, beta = nearest(weight, best, blocks, form), _BETA
    least = squared_error(weight, coded)
    for _ in range(turns):
        off = weight - coded.values()
        step = blocks.spread(coded.grid.scale)
        size = np.abs(off) / step
        shrunk = np.maximum(0, size - 1 / (beta * np.sqrt(np.maximum(size, 1e-6)))) * np.sign(off) * step
        coded = nearest(weight, _fitted(weight - shrunk, coded, form), blocks, form)
        error = squared_error(weight, coded)
        better = error < least
        if not better.any():
            break
        best = _chosen(better, coded.grid, best)
        least, beta = np.minimum(least, error), beta * _GROWTH
    return nearest(weight, best, blocks, form)


def _fitted(weight: Real, coded: Coded, form: Format) -> Grid:
    """Scale and zero point for which the same integers come nearest to the weights."""
    blocks, old = coded.blocks, coded.grid
    steps = coded.steps.astype(np.float32)
    if form.symmetric:
        power = blocks.fold(steps * steps)
        slope = blocks.fold(steps * weight) / np.maximum(power, 1)
        return Grid(_stored(np.where(slope > 0, slope, old.scale)), old.zero)
    count = blocks.fold(np.ones((1, steps.shape[1]), np.float32))
    mean, level = blocks.fold(steps) / count, blocks.fold(weight) / count
    spread = blocks.fold(steps * steps) / count - mean**2
    slope = (blocks.fold(steps * weight) / count - mean * level) / np.maximum(spread, 1e-12)
    scale = _stored(np.where(slope > 0, slope, old.scale))
    return Grid(scale, _integers(mean - level / scale, form))


def _chosen(where: npt.NDArray[np.bool_], yes: Grid, no: Grid) -> Grid:
    return Grid(np.where(where, yes.scale, no.scale), np.where(where, yes.zero, no.zero))


def _integers(steps: Real, form: Format) -> Integers:
    return np.clip(np.rint(steps), form.lowest, form.highest).astype(np.int8)


def _stored(scale: Real) -> npt.NDArray[np.float32]:
    """Never zero or denormal: a block of zeros gets 1."""
    return np.where(scale == 0, 1.0, np.maximum(scale, _SMALLEST)).astype(np.float32)
