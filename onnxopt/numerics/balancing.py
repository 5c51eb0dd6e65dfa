"""Weights rounded so that their errors cancel: for what is never negative, and so has a mean."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxopt.numerics.blocks import Blocks, Coded, Format, Real, full_range, nearest

# Weights that are looked at at a time, so that what is sorted stays in the processor's cache; at least so many blocks.
_CELLS, _LEAST_CELLS = 2**16, 64


def balanced(weight: Real, blocks: Blocks, form: Format) -> Coded:
    """As ``nearest``, but the errors of each block add up to half a step at most, where the integers allow it: weights
    next to the middle between two integers take the other one.

    What a layer makes of inputs x with mean m and deviation d is wrong by d^2 |e|^2 + m^2 (sum of e)^2 for errors e of
    its weights, alike and apart; behind a Relu the two are of one size, and moving few weights takes away the second
    (Guo et al., "SQuant: on-the-fly data-free quantization via diagonal Hessian approximation", 2022).
    """
    coded = nearest(weight, full_range(weight, blocks, form), blocks, form)
    zero, scale = (blocks.spread(p) for p in (coded.grid.zero, coded.grid.scale))
    off = blocks.cells(np.asarray(weight / scale - (coded.steps - zero.astype(np.float32)), np.float32)).T
    steps = np.ascontiguousarray(blocks.cells(coded.steps).T)
    height = max(_LEAST_CELLS, _CELLS // max(off.shape[1], 1))
    for start in range(0, len(off), height):
        _balance(steps[start : start + height], off[start : start + height], form)
    return coded._replace(steps=blocks.rows(steps.T))


def _balance(steps: npt.NDArray[np.int8], off: npt.NDArray[np.float32], form: Format) -> None:
    """Moves integers (blocks, places) by one; ``off`` says how far each is from its weight, 0 where there is none."""
    total = off.sum(axis=1, keepdims=True)
    sign = np.sign(total).astype(np.int8)
    free = np.where(sign > 0, steps < form.highest, steps > form.lowest)
    gain = np.where(free, off * sign, 0)
    order = np.argsort(-gain, axis=1, kind="stable")
    moves = np.arange(off.shape[1]) < np.rint(np.abs(total))
    moves &= np.take_along_axis(gain, order, axis=1) > 0
    moved = np.zeros_like(steps)
    np.put_along_axis(moved, order, moves * sign, axis=1)
    steps += moved
