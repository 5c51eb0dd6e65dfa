"""A weight (outputs, inputs, height, width) as a product of small tensors, nearest in what it makes of its inputs.

    spatial  orj,rci->ocij       k x 1, then 1 x k       (Jaderberg, Vedaldi and Zisserman, 2014)
    tucker   oa,abij,bc->ocij    1 x 1, k x k, 1 x 1     (Kim et al., 2016)
    cp       or,rij,rc->ocij     1 x 1, depthwise, 1 x 1 (Lebedev et al., 2015)

The error is tr(D S D^T), D the difference unrolled as (outputs, inputs x kernel) and S the second moment of unrolled
inputs; without one, |D|^2. Each factor in turn is solved for with the others fixed: a least-squares problem, by
conjugate gradients from where it is, so that no turn ever loses.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from onnxopt.numerics.low_rank import factorize, singular_values

Floats: TypeAlias = npt.NDArray[np.float64]
SPATIAL, TUCKER, CP = "orj,rci->ocij", "oa,abij,bc->ocij", "or,rij,rc->ocij"
_SWEEPS, _STEPS = 4, 8
# Factors that do not change are multiplied once, if that makes no more than this many times the weight's numbers.
_LARGER = 8
_TINY = np.finfo(np.float64).tiny


def compose(equation: str, factors: Sequence[Floats]) -> Floats:
    """The weight that the factors stand for."""
    return np.asarray(np.einsum(equation, *factors, optimize=True))


def error(weight: Floats, product: Floats, moment: Floats | None = None) -> float:
    """What the outputs lose on the mean of the inputs, squared and summed over outputs."""
    d = (weight - product).reshape(len(weight), -1)
    return max(0.0, float(np.vdot(d, d if moment is None else d @ moment)))


def refine(
    equation: str, factors: Sequence[Floats], weight: Floats, moment: Floats | None = None, sweeps: int = _SWEEPS
) -> list[Floats]:
    """The factors after so many turns of each."""
    found = [np.array(f) for f in factors]
    terms, whole = equation.split("->")[0].split(","), equation.split("->")[1]
    for _ in range(sweeps):
        for at in range(len(found)):
            others = [f for i, f in enumerate(found) if i != at]
            rest = [t for i, t in enumerate(terms) if i != at]
            others, rest = _together(others, rest, terms[at] + whole, weight.size)
            into, back = ",".join([terms[at], *rest]) + f"->{whole}", ",".join([whole, *rest]) + f"->{terms[at]}"
            missing = weight - compose(equation, found)
            found[at] += _solve(into, back, others, missing, moment, found[at].shape)
    return found


def _together(factors: list[Floats], terms: list[str], kept: str, size: int) -> tuple[list[Floats], list[str]]:
    """The factors as one, where that is not much larger than what they make."""
    letters = "".join(dict.fromkeys(letter for letter in "".join(terms) if letter in kept))
    sizes = {letter: n for f, t in zip(factors, terms, strict=True) for letter, n in zip(t, f.shape, strict=True)}
    if len(factors) == 1 or prod(sizes[letter] for letter in letters) > _LARGER * size:
        return factors, terms
    return [compose(",".join(terms) + "->" + letters, factors)], [letters]


def _solve(
    into: str, back: str, others: Sequence[Floats], missing: Floats, moment: Floats | None, shape: Sequence[int]
) -> Floats:
    """The change of one factor: some steps of conjugate gradients on its normal equations."""

    def weigh(d: Floats) -> Floats:
        return d if moment is None else (d.reshape(len(d), -1) @ moment).reshape(d.shape)

    change = np.zeros(shape)
    rest = np.asarray(np.einsum(back, weigh(missing), *others, optimize=True))
    way, power = rest, float(np.vdot(rest, rest))
    first = power
    for _ in range(_STEPS):
        if power <= 1e-20 * first or power < _TINY:
            break
        made = np.einsum(into, way, *others, optimize=True)
        bent = np.asarray(np.einsum(back, weigh(made), *others, optimize=True))
        curve = float(np.vdot(way, bent))
        if curve <= _TINY:
            break
        step = power / curve
        change += step * way
        rest = rest - step * bent
        before, power = power, float(np.vdot(rest, rest))
        way = rest + power / before * way
    return change


def spatial(weight: Floats, rank: int, moment: Floats | None = None) -> list[Floats]:
    """Factors (outputs, rank, width) and (rank, inputs, height); without a moment, the best there are."""
    o, c, h, w = weight.shape
    column = None if moment is None else summed(moment, (c, h, w), 2)
    flat = weight.transpose(0, 3, 1, 2).reshape(o * w, c * h)
    left, right = factorize(flat, rank, column)
    factors = [left.reshape(o, w, rank).transpose(0, 2, 1), right.reshape(rank, c, h)]
    return factors if moment is None else refine(SPATIAL, factors, weight, moment)


def tucker(weight: Floats, ranks: tuple[int, int], moment: Floats | None = None) -> list[Floats]:
    """Factors (outputs, ranks[0]), (*ranks, height, width) and (ranks[1], inputs)."""
    o, c, h, w = weight.shape
    a, b = ranks
    outer, inner = factorize(weight.reshape(o, -1), a, moment)
    flat = inner.reshape(a, c, h * w).transpose(0, 2, 1).reshape(-1, c)
    core, into = factorize(flat, b, None if moment is None else summed(moment, (c, h * w), 1))
    factors = [outer, core.reshape(a, h, w, b).transpose(0, 3, 1, 2), into]
    return refine(TUCKER, factors, weight, moment)


def cp(weight: Floats, rank: int, moment: Floats | None = None, sweeps: int = 2 * _SWEEPS) -> list[Floats]:
    """Factors (outputs, rank), (rank, height, width) and (rank, inputs)."""
    o, c, h, w = weight.shape
    return refine(CP, _products(weight.reshape(o, c, -1), rank, (h, w)), weight, moment, sweeps)


def _products(weight: Floats, rank: int, kernel: tuple[int, int]) -> list[Floats]:
    """To start from: products of vectors from singular value decompositions, the largest of them, then noise."""
    o, c, k = weight.shape
    u, s, vt = np.linalg.svd(weight.reshape(o, c * k), full_matrices=False)
    p, q, rt = np.linalg.svd(vt.reshape(-1, c, k), full_matrices=False)
    size = (s[:, None] * q).ravel()
    best = np.argsort(-size, kind="stable")[:rank]
    i, j = best // q.shape[1], best % q.shape[1]
    share = np.cbrt(size[best])
    factors = [u[:, i] * share, rt[i, j] * share[:, None], p[i, :, j] * share[:, None]]
    more, rng = rank - len(best), np.random.default_rng(0)
    small = 0.1 * float(share.min())
    if more > 0:
        factors[0] = np.hstack([factors[0], small * rng.standard_normal((o, more))])
        factors[1] = np.vstack([factors[1], small * rng.standard_normal((more, k))])
        factors[2] = np.vstack([factors[2], small * rng.standard_normal((more, c))])
    return [factors[0], factors[1].reshape(-1, *kernel), factors[2]]


def summed(moment: Floats, shape: Sequence[int], axis: int) -> Floats:
    """The mean over one axis of the inputs of their second moment, the others kept."""
    rest = int(np.prod(shape)) // shape[axis]
    full = np.moveaxis(moment.reshape(*shape, *shape), (axis, len(shape) + axis), (-2, -1))
    return np.asarray(np.trace(full, axis1=-2, axis2=-1).reshape(rest, rest) / shape[axis])


def input_spectrum(weight: Floats, moment: Floats | None) -> Floats:
    """Energy of the outputs by direction of the input channels, falling: (inputs,). ``weight`` (o, c, h, w)."""
    o, c, h, w = weight.shape
    flat = weight.reshape(o, c, h * w).transpose(0, 2, 1).reshape(-1, c)
    small = None if moment is None else summed(moment, (c, h * w), 1)
    found = np.square(singular_values(flat, small))
    return np.pad(found, (0, c - len(found)))
