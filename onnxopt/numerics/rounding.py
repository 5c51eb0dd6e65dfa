"""Round weights so that what they make of their inputs changes least, rather than the weights themselves.

For an error D = weight - rounded and inputs x with the second moments H = E[x x^T], an output errs by D H D^T. Rounding
one weight after the other, the weights that are not yet rounded can make good for those that are: that is optimal brain
surgery (Hassibi and Stork, "Second order derivatives for network pruning: optimal brain surgeon", 1993) in the fixed
order of GPTQ (Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers",
2022). With H = L L^T the error is |D L|^2, and because L is triangular the last weight's part of it can be made
smallest first, then that of the one before it, and so on: the same numbers as with the inverse of H, without the
inverse (Babai, "On Lovasz' lattice reduction and the nearest lattice point problem", 1986).

Everything here works on stacks of matrices, one for each group of channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np

from onnxopt.numerics.least_squares import Floats

# What takes the place of each number, of itself: the nearest that there is.
Closest: TypeAlias = Callable[[Floats], Floats]

_BLOCK = 64
_SWEEPS = 2
# Of the mean diagonal: without it second moments that rounding has made indefinite have no root.
_FLOOR = 1e-9


def output_error(change: Floats, gram: Floats) -> Floats:
    """D H D^T of each row: ``change`` (..., outputs, inputs), ``gram`` (..., inputs, inputs); (..., outputs)."""
    return np.asarray(((change @ gram) * change).sum(axis=-1))


def nearest(weight: Floats, largest: int) -> Floats:
    """Each weight, in steps, rounded by itself."""
    return np.asarray(np.minimum(np.maximum(np.rint(weight), -largest), largest))


def round_weights(weight: Floats, gram: Floats, largest: int = 127) -> Floats:
    """Integers in -largest..largest with a small output error, never a larger one than that of ``nearest``.

    ``weight`` (..., outputs, inputs) is in steps, that is divided by its scale; ``gram`` (..., inputs, inputs) holds
    the second moments of the inputs, times any number. Weights whose inputs have most power are rounded first.
    """
    return round_to(weight, gram, partial(nearest, largest=largest))


def round_to(weight: Floats, gram: Floats, closest: Closest) -> Floats:
    """The same for any set of numbers: what ``closest`` gives for a number is the nearest of them."""
    order = np.argsort(np.diagonal(gram, axis1=-2, axis2=-1), axis=-1, kind="stable")[..., None]
    gram = np.take_along_axis(np.take_along_axis(gram, order.swapaxes(-1, -2), -1), order, -2)
    # Columns are taken one by one: each lies in one piece.
    turned = np.take_along_axis(weight.swapaxes(-1, -2), order, -2)
    plain = closest(turned)
    steps = _descend(turned, _one_by_one(turned, gram, closest), gram, closest)
    old, new = (output_error((turned - s).swapaxes(-1, -2), gram) for s in (plain, steps))
    found = np.where((new < old)[..., None, :], steps, plain)
    return np.take_along_axis(found, np.argsort(order, axis=-2), -2).swapaxes(-1, -2)


def _one_by_one(weight: Floats, gram: Floats, closest: Closest) -> Floats:
    """Round (..., inputs, outputs) from the last input to the first, each to make good for those behind it."""
    root = lower_root(gram)
    share = (root / np.diagonal(root, axis1=-2, axis2=-1)[..., None, :]).swapaxes(-1, -2)
    steps, error = np.empty_like(weight), np.empty_like(weight)
    for end in range(weight.shape[-2], 0, -_BLOCK):
        start = max(0, end - _BLOCK)
        wanted = weight[..., start:end, :] + share[..., start:end, end:] @ error[..., end:, :]
        for j in range(end - 1, start - 1, -1):
            behind = share[..., j, None, j + 1 : end] @ error[..., j + 1 : end, :]
            steps[..., j, :] = closest(wanted[..., j - start, :] + behind[..., 0, :])
            error[..., j, :] = weight[..., j, :] - steps[..., j, :]
    return steps


def _descend(weight: Floats, steps: Floats, gram: Floats, closest: Closest) -> Floats:
    """Move one weight at a time to where the error is least, all others as they are."""
    power = np.diagonal(gram, axis1=-2, axis2=-1)
    inverse = np.divide(1.0, power, out=np.zeros_like(power), where=power > 0)[..., None]
    steps = steps.copy()
    slope = gram @ (weight - steps)
    for _ in range(_SWEEPS):
        for start in range(0, weight.shape[-2], _BLOCK):
            block = slice(start, start + _BLOCK)
            before, near, own = steps[..., block, :].copy(), slope[..., block, :].copy(), gram[..., block, block]
            for j in range(near.shape[-2]):
                at = steps[..., start + j, :]
                moved = closest(at + near[..., j, :] * inverse[..., start + j, :])
                near -= own[..., j, :, None] * (moved - at)[..., None, :]
                steps[..., start + j, :] = moved
            slope -= gram[..., block] @ (steps[..., block, :] - before)
    return steps


def lower_root(gram: Floats) -> Floats:
    """The lower triangular L with L L^T = gram; where gram has none, that of the next matrix that does."""
    width = gram.shape[-1]
    mean = np.trace(gram, axis1=-2, axis2=-1)[..., None, None] / max(width, 1)
    added = np.where(mean > 0, mean, 1.0) * np.eye(width)
    floor = _FLOOR
    while True:
        try:
            return np.asarray(np.linalg.cholesky(gram + floor * added), np.float64)
        except np.linalg.LinAlgError:
            floor *= 100
