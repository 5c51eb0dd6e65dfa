"""Set single weights to zero so that what they make of their inputs changes least.

For weights W, new ones V and inputs x with the second moments H = E[x x^T], an output errs by D H D^T, D = W - V. Which
weights go is found in one of two ways, and then those that are left are solved for together (``settle``).

``by_splitting``: the alternating direction method of multipliers, with weights that are near in H and weights that are
sparse pulled together ever harder (Boza, "Fast and effective weight update for pruned large language models", 2024;
Meng et al., "ALPS: improved optimization for highly sparse one-shot pruning for large language models", 2024).

``by_surgery``: with H = R R^T, R upper triangular, the error is |D R|^2, and column j of D R depends on the columns of
D up to j alone: where the first weights of a row are given, weight j costs nothing if it is

    w_j + sum_{i < j} D_i R_ij / R_jj

and the square of that times R_jj^2 if it is zero instead. So the columns are decided one after the other, each weight
that stays making good for those before it: SparseGPT (Frantar and Alistarh, "SparseGPT: massive language models can be
accurately pruned in one-shot", 2023), which is optimal brain surgery (Hassibi and Stork, 1993) in a fixed order, here
without the inverse of H. Which weights of a block of columns go is settled when the block is reached.

Everything works on stacks of matrices, one for each group of channels: ``weight`` is (groups, outputs, inputs), and H,
``gram``, (groups, inputs, inputs). ``goes`` says how much: so many weights in all, or so many of each run.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onnxopt.numerics.least_squares import Floats
from onnxopt.numerics.rounding import lower_root

Mask = npt.NDArray[np.bool_]

_BLOCK = 64
# How hard pulling begins, for inputs of power 1, and how it grows: slower gains hardly a tenth of a decibel.
_PULL, _HARDER, _ROUNDS = 0.02, 1.12, 50
_STEPS = 100
_SOLVED = 1e-10


class Runs(NamedTuple):
    """At most ``kept`` of each ``length`` weights in a row may be other than zero."""

    kept: int
    length: int

    @classmethod
    def parse(cls, text: str) -> Runs:
        """From ``"2:4"``. Raises ValueError."""
        found = re.fullmatch(r"(\d{1,3}):(\d{1,3})", text)
        if found is None or not 0 < int(found[1]) < int(found[2]):
            raise ValueError(f"pattern is '{text}'; write two numbers, the smaller first, such as 2:4")
        return cls(int(found[1]), int(found[2]))

    def smallest(self, score: Floats) -> Mask:
        """True for all but the highest ``kept`` of each ``length`` scores along the last axis."""
        order = np.argsort(score.reshape(-1, self.length), axis=-1, kind="stable")
        found = np.zeros(order.shape, np.bool_)
        np.put_along_axis(found, order[:, : self.length - self.kept], True, axis=-1)
        return found.reshape(score.shape)


def smallest(score: Floats, goes: int | Runs) -> Mask:
    """True for the lowest scores, which go: exactly so many; of equals, the first."""
    if isinstance(goes, Runs):
        return goes.smallest(score)
    found = np.zeros(score.size, np.bool_)
    if goes:
        bound = np.partition(score, goes - 1, axis=None)[goes - 1]
        below, equal = np.flatnonzero(score < bound), np.flatnonzero(score == bound)
        found[below] = found[equal[: goes - len(below)]] = True
    return found.reshape(score.shape)


def by_splitting(weight: Floats, gram: Floats, goes: int | Runs) -> Mask:
    """True for each weight that goes."""
    power = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    unit = np.divide(1.0, power, out=np.zeros_like(power), where=power > 0)
    values, vectors = np.linalg.eigh(unit[:, :, None] * gram * unit[:, None])
    turned = vectors.swapaxes(-1, -2)
    near = weight * power[:, None]
    wanted = ((near @ vectors) * values[:, None]) @ turned
    owed, pull = np.zeros_like(near), _PULL
    for _ in range(_ROUNDS):
        mask = smallest(np.square(near + owed), goes)
        sparse = np.where(mask, 0.0, near + owed)
        owed += near - sparse
        near = (((wanted + pull * (sparse - owed)) @ vectors) / (values.clip(0)[:, None] + pull)) @ turned
        pull *= _HARDER
    return mask


def by_surgery(weight: Floats, gram: Floats, goes: int | Runs) -> Mask:
    """True for each weight that goes: of every block of columns the same share."""
    root = _root(gram)
    diagonal = np.diagonal(root, axis1=-2, axis2=-1)[:, None]
    width = weight.shape[-1]
    step = max(1, _BLOCK // goes.length) * goes.length if isinstance(goes, Runs) else _BLOCK
    mask, change = np.zeros(weight.shape, np.bool_), np.zeros(weight.shape)
    for start in range(0, width, step):
        block = slice(start, min(start + step, width))
        own = root[:, block, block]
        owed = change[..., :start] @ root[:, :start, block]
        free = weight[..., block] + np.linalg.solve(own.swapaxes(1, 2), owed.swapaxes(1, 2)).swapaxes(1, 2)
        share = goes if isinstance(goes, Runs) else goes * block.stop // width - goes * start // width
        mask[..., block] = gone = smallest(np.square(free * diagonal[..., block]), share)
        for j in range(block.stop - start):
            at = start + j
            missing = owed[..., j] + (change[..., start:at] @ own[:, :j, j, None])[..., 0]
            change[..., at] = np.where(gone[..., j], weight[..., at], -missing / diagonal[..., at])
    return mask


def settle(weight: Floats, gram: Floats, mask: Mask) -> Floats:
    """The weights that come nearest to ``weight`` by D H D^T, and are zero where ``mask`` is True.

    By conjugate gradients, all rows at once, inputs scaled to power 1.
    """
    power = np.diagonal(gram, axis1=-2, axis2=-1)[:, None]
    scale = np.where(mask, 0.0, np.divide(1.0, power, out=np.zeros_like(power), where=power > 0))
    found = np.where(mask, 0.0, weight)
    slope = np.where(mask, 0.0, (weight - found) @ gram)
    way = slope * scale
    height = (slope * way).sum(axis=-1, keepdims=True)
    least = height * _SOLVED
    for _ in range(_STEPS):
        if (height <= least).all():
            break
        turn = np.where(mask, 0.0, way @ gram)
        bent = (way * turn).sum(axis=-1, keepdims=True)
        length = np.divide(height, bent, out=np.zeros_like(height), where=(bent > 0) & (height > least))
        found += length * way
        slope -= length * turn
        eased = slope * scale
        now = (slope * eased).sum(axis=-1, keepdims=True)
        way = eased + np.divide(now, height, out=np.zeros_like(height), where=height > 0) * way
        height = now
    return found


def _root(gram: Floats) -> Floats:
    """The upper triangular R with R R^T = gram."""
    return np.asarray(lower_root(gram[..., ::-1, ::-1])[..., ::-1, ::-1])
