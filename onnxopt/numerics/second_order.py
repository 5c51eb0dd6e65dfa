"""Round weights on a grid of blocks so that what they make of their inputs changes least.

The same as ``rounding.round_weights``, which see for sources, where scales and zero points change from block to block:
column after column in the order of the inputs' power, each to make good for those that are rounded already (GPTQ:
Frantar et al., 2022), then one integer at a time is moved to where the error is least. The grid is fixed before.
"""

from __future__ import annotations

import numpy as np

from onnxopt.numerics.blocks import Coded, Format, Grid, Integers, nearest
from onnxopt.numerics.least_squares import Floats
from onnxopt.numerics.rounding import lower_root, output_error

_PIECE = 64
_SWEEPS = 2


def round_on(weight: Floats, gram: Floats, start: Coded, form: Format) -> Coded:
    """Integers with a small output error D H D^T, for no row a larger one than those of the nearest.

    ``weight`` (rows, columns), ``gram`` (columns, columns) second moments of the inputs; ``start`` gives the grid.
    """
    grid, blocks = start.grid, start.blocks
    order = np.argsort(np.diagonal(gram), kind="stable")
    gram = gram[np.ix_(order, order)]
    scale, zero = (blocks.spread(p)[:, order].T.astype(np.float64) for p in (grid.scale, grid.zero))
    # As float32, which the runtime multiplies: products of scales and small integers are exact in float64.
    work = _Columns(np.ascontiguousarray(weight.T[order]), gram, scale, form.lowest - zero, form.highest - zero)
    plain = nearest(weight, grid, blocks, form)
    steps = np.empty(weight.shape)
    steps[:, order] = (work.descend(work.one_by_one()) + zero).T
    found = Coded(steps.astype(np.int8), grid, blocks)
    back = np.argsort(order)
    old, new = (output_error(weight - c.values(), gram[np.ix_(back, back)]) for c in (plain, found))
    return Coded(_rows(new < old, found.steps, plain.steps), grid, blocks)


def fit_scales(weight: Floats, gram: Floats, coded: Coded) -> Coded:
    """Scales with which the integers, as they are, have a smaller output error; no row gets a larger one.

    A row errs by D H D^T with D = weight - integers * scale. One block after the other gets the scale for which that is
    least, all others as they are. Scales that would not be positive stay as they were.
    """
    blocks = coded.blocks
    steps = coded.steps.astype(np.float64) - blocks.spread(coded.grid.zero)
    scale = coded.grid.scale.astype(np.float64)
    slope = (weight - steps * blocks.spread(scale)) @ gram
    for block in list(range(blocks.count)) * _SWEEPS:
        inside = np.flatnonzero(blocks.of == block)
        q = steps[:, inside]
        power = ((q @ gram[np.ix_(inside, inside)]) * q).sum(axis=1)
        better = scale[:, block] + (slope[:, inside] * q).sum(axis=1) / np.maximum(power, 1e-30)
        better = np.where((better > 0) & (power > 0), better, scale[:, block])
        slope -= ((better - scale[:, block])[:, None] * q) @ gram[inside]
        scale[:, block] = better
    found = Coded(coded.steps, Grid(scale.astype(np.float32), coded.grid.zero), blocks)
    old, new = (output_error(weight - c.values(), gram) for c in (coded, found))
    kept = np.where((new < old)[:, None], found.grid.scale, coded.grid.scale)
    return Coded(coded.steps, Grid(kept, coded.grid.zero), blocks)


def _rows(where: np.ndarray, yes: Integers, no: Integers) -> Integers:
    return np.asarray(np.where(where[:, None], yes, no), np.int8)


class _Columns:
    """Weights (columns, rows), so that each column lies in one piece; integers count from the zero point."""

    def __init__(self, weight: Floats, gram: Floats, scale: Floats, lowest: Floats, highest: Floats) -> None:
        self._weight, self._gram, self._scale = weight, gram, scale
        self._lowest, self._highest = lowest, highest

    def _nearest(self, value: Floats, j: int) -> Floats:
        return np.asarray(np.minimum(np.maximum(np.rint(value / self._scale[j]), self._lowest[j]), self._highest[j]))

    def one_by_one(self) -> Floats:
        """Round from the last column, which has most power, to the first."""
        root = lower_root(self._gram)
        share = (root / np.diagonal(root)).T
        steps, error = np.empty_like(self._weight), np.empty_like(self._weight)
        for end in range(len(steps), 0, -_PIECE):
            start = max(0, end - _PIECE)
            wanted = self._weight[start:end] + share[start:end, end:] @ error[end:]
            for j in range(end - 1, start - 1, -1):
                behind = share[j, j + 1 : end] @ error[j + 1 : end]
                steps[j] = self._nearest(wanted[j - start] + behind, j)
                error[j] = self._weight[j] - steps[j] * self._scale[j]
        return steps

    def descend(self, steps: Floats) -> Floats:
        """Move one integer at a time to where the error is least, all others as they are."""
        power = np.diagonal(self._gram)
        inverse = np.divide(1.0, power, out=np.zeros_like(power), where=power > 0)
        value = steps * self._scale
        slope = self._gram @ (self._weight - value)
        for _ in range(_SWEEPS):
            for start in range(0, len(steps), _PIECE):
                piece = slice(start, start + _PIECE)
                before, near, own = value[piece].copy(), slope[piece].copy(), self._gram[piece, piece]
                for j in range(len(near)):
                    at = start + j
                    steps[at] = self._nearest(value[at] + near[j] * inverse[at], at)
                    moved = steps[at] * self._scale[at]
                    near -= own[j][:, None] * (moved - value[at])
                    value[at] = moved
                slope -= self._gram[:, piece] @ (value[piece] - before)
        return steps
