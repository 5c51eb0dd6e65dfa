"""Weights of few bits for what a layer really reads: the best of several roundings, on rows that were held back.

The measure is what rounding to nearest does to the same layer at the same place; nothing that is worse is taken. All
others move the weights to where the layer, as it is reached now, comes nearest to what it shall make, round them one
after the other to make good for one another, and set the bias so that means are what they shall be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from onnxopt.core.seen import Rows, Seen
from onnxopt.graph.layer import Floats
from onnxopt.numerics.blocks import Blocks, Coded, Format, Grid, full_range, half_quadratic, nearest, searched
from onnxopt.numerics.second_order import fit_scales, round_on

# Added to the power of every input, as a share of it.
_DAMPINGS = (1e-2, 1e-1, 1.0)


class Fitted(NamedTuple):
    """``coded`` (outputs of all groups, inputs), ``bias`` (groups, outputs), by which ``rounding``; squared error over
    squared output on held-back rows, and that of rounding to nearest."""

    coded: Coded
    bias: Floats
    rounding: str
    error: float
    nearest: float

    def weight(self) -> Floats:
        """(groups, outputs, inputs)"""
        return _stacked(self.coded, len(self.bias))


def fit(weight: Floats, bias: Floats, has_bias: bool, rows: Iterable[Rows], blocks: Blocks, form: Format) -> Fitted:
    """``weight`` (groups, outputs, inputs), ``bias`` (groups, outputs)."""
    seen = Seen(weight, bias, has_bias, rows)
    found: list[Fitted] = []
    for name, coded in _candidates(seen, blocks, form):
        whole = _stacked(coded, len(bias))
        for offset in (bias, seen.with_bias(whole)[1]) if has_bias or not found else (bias,):
            error = seen.error(whole, offset)
            found.append(Fitted(coded, offset, name, error, found[0].error if found else error))
    return min(found, key=lambda f: f.error)


def _candidates(seen: Seen, blocks: Blocks, form: Format) -> Iterator[tuple[str, Coded]]:
    flat = seen.weight.reshape(-1, seen.weight.shape[2])
    yield "nearest", nearest(flat, full_range(flat, blocks, form), blocks, form)
    yield "half-quadratic", half_quadratic(flat, blocks, form)
    for damping in _DAMPINGS if seen.tells else ():
        gram = seen.damped(damping)
        wanted = seen.wanted(gram)
        parts = [_rounded(w, g, blocks, form) for w, g in zip(wanted, gram, strict=True)]
        yield "second-order", _joined(parts)


def _rounded(weight: Floats, gram: Floats, blocks: Blocks, form: Format) -> Coded:
    """Of one group: from a grid that suits the inputs, rounded in turn, with the scales that then fit best."""
    grid = searched(weight, blocks, form, np.diagonal(gram))
    coded = round_on(weight, gram, nearest(weight, grid, blocks, form), form)
    return fit_scales(weight, gram, coded)


def _joined(parts: list[Coded]) -> Coded:
    grid = Grid(*(np.concatenate(p) for p in zip(*(c.grid for c in parts), strict=True)))
    return Coded(np.concatenate([c.steps for c in parts]), grid, parts[0].blocks)


def _stacked(coded: Coded, groups: int) -> Floats:
    return coded.values().astype(np.float64).reshape(groups, -1, coded.steps.shape[1])
