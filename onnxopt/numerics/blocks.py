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
Single = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int8]
_Pair = tuple[Single, Single]

_SMALLEST = 2.0**-60
# Half-quadratic splitting: the weight of the split, how many turns at most, and the share of the error that a turn may
# leave for another to follow. Its authors take 0.7 for the norm, a hundredth of a decibel from the half here, but a
# power instead of a root; and they let the weight grow by a hundredth each turn, which five turns do not show.
_BETA, _TURNS, _WORTH = 10.0, 5, 0.9995
# Weights that are split at a time, so that they stay in the processor's cache; at least so many blocks.
_CELLS, _LEAST_CELLS = 2**16, 64
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

    @cached_property
    def counts(self) -> Single:
        """Columns of each block."""
        return np.bincount(self.of, minlength=self.count).astype(np.float32)

    @cached_property
    def _places(self) -> npt.NDArray[np.intp]:
        """Where each column is when all blocks are as long as the longest, one behind the other."""
        within = np.empty(len(self.of), np.intp)
        within[self._order] = np.arange(len(self.of)) - self._starts[self.of[self._order]]
        return self.of * self._longest + within

    @property
    def _longest(self) -> int:
        return int(self.counts.max(initial=0))

    def cells(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(rows, columns) to (longest block, rows x blocks): every block a column, filled up with zeros."""
        if not self._size:
            whole = np.zeros((len(values), self.count * self._longest), values.dtype)
            whole[:, self._places] = values
            values = whole
        return values.reshape(-1, self._longest).T

    def rows(self, cells: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What ``cells`` made, (rows, columns) again."""
        whole = cells.T.reshape(-1, self.count * self._longest)
        return whole if self._size else whole[:, self._places]

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
    scale, zero = _range(top, bottom, form)
    return Grid(scale, zero.astype(np.int8))


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
    cells, counts = blocks.cells(np.asarray(weight, np.float32)), np.tile(blocks.counts, len(weight))
    steps = np.empty(cells.shape, np.int8)
    scale, zero = np.empty(len(counts), np.float32), np.empty(len(counts), np.int8)
    width = max(_LEAST_CELLS, _CELLS // len(cells))
    for start in range(0, len(counts), width):
        part = slice(start, start + width)
        split = _Splitting(np.ascontiguousarray(cells[:, part]), counts[part], form)
        scale[part], zero[part] = split.best(turns)
        np.add(split.steps, zero[part], out=steps[:, part], casting="unsafe")
    shape = (len(weight), blocks.count)
    return Coded(blocks.rows(steps), Grid(scale.reshape(shape), zero.reshape(shape)), blocks)


class _Splitting:
    """Blocks side by side, ``weight`` (places, blocks) with zeros where a block has fewer weights; ``counts`` (blocks,)
    of them. Every turn works in the same arrays; ``steps`` count from the zero point, so zeros change no sum."""

    def __init__(self, weight: Single, counts: Single, form: Format) -> None:
        self.weight, self.counts, self.form = weight, counts, form
        self.steps, self._off, self._work = (np.empty_like(weight) for _ in range(3))

    def best(self, turns: int) -> tuple[Single, Single]:
        """Scale and zero point of each block; leaves the steps of these."""
        top, bottom = np.maximum(self.weight.max(axis=0), 0), np.minimum(self.weight.min(axis=0), 0)
        grid = _range(top, bottom, self.form)
        least = self._error(*grid)
        for share in _FEW_SHARES:
            grid, least = self._better(_range(top * share, bottom * share, self.form), grid, least)
        moved = grid
        self._error(*moved)
        for _ in range(turns):
            before, moved = least, self._fitted(*moved)
            grid, least = self._better(moved, grid, least)
            if least.sum() >= before.sum() * _WORTH:
                break
        self._error(*grid)
        return grid

    def _better(self, new: _Pair, old: _Pair, least: Single) -> tuple[_Pair, Single]:
        error = self._error(*new)
        better = error < least
        return (np.where(better, new[0], old[0]), np.where(better, new[1], old[1])), np.minimum(least, error)

    def _error(self, scale: Single, zero: Single) -> Single:
        """Squared error of each block; leaves its steps, and how far each weight is off."""
        steps, off = self.steps, self._off
        np.rint(np.multiply(self.weight, 1 / scale, out=steps), out=steps)
        np.minimum(np.maximum(steps, self.form.lowest - zero, out=steps), self.form.highest - zero, out=steps)
        np.subtract(self.weight, np.multiply(steps, scale, out=off), out=off)
        return np.asarray(np.square(off, out=self._work).sum(axis=0))

    def _fitted(self, scale: Single, zero: Single) -> _Pair:
        """Scale and zero point for which the same steps come nearest to the weights without their large errors."""
        steps, off, work = self.steps, self._off, self._work
        np.sqrt(np.abs(np.multiply(off, 1 / scale, out=off), out=work), out=work)
        with np.errstate(divide="ignore"):
            np.divide(1 / _BETA, work, out=work)
        # What is left of an error in steps, without its shrunk part: as it is up to 1 / (beta sqrt|x|), there it ends.
        np.minimum(off, work, out=off)
        np.maximum(off, np.negative(work, out=work), out=off)
        power = np.square(steps, out=work).sum(axis=0)
        if self.form.symmetric:
            ratio = 1 + np.multiply(steps, off, out=work).sum(axis=0) / np.maximum(power, 1)
            return _stored(np.where(ratio > 0, ratio * scale, scale)), zero
        mean, level = steps.sum(axis=0) / self.counts, off.sum(axis=0) / self.counts
        both = np.multiply(steps, off, out=work).sum(axis=0) / self.counts
        ratio = 1 + (both - mean * level) / np.maximum(power / self.counts - mean**2, 1e-12)
        found = _stored(np.where(ratio > 0, ratio * scale, scale))
        return found, _bounded(zero + mean - (mean + level) * (scale / found), self.form)


def _chosen(where: npt.NDArray[np.bool_], yes: Grid, no: Grid) -> Grid:
    return Grid(np.where(where, yes.scale, no.scale), np.where(where, yes.zero, no.zero))


def _range(top: Real, bottom: Real, form: Format) -> tuple[Single, Real]:
    """Scale and zero point with which the integers reach from ``bottom`` to ``top``."""
    if form.symmetric:
        scale = _stored(np.maximum(top / form.highest, bottom / form.lowest))
        return scale, np.zeros_like(scale)
    scale = _stored((top - bottom) / (form.highest - form.lowest))
    return scale, _bounded(form.lowest - bottom / scale, form)


def _integers(steps: Real, form: Format) -> Integers:
    return _bounded(steps, form).astype(np.int8)


def _bounded(steps: Real, form: Format) -> Real:
    return np.asarray(np.clip(np.rint(steps), form.lowest, form.highest))


def _stored(scale: Real) -> Single:
    """Never zero or denormal: a block of zeros gets 1."""
    return np.where(scale == 0, 1.0, np.maximum(scale, _SMALLEST)).astype(np.float32)
