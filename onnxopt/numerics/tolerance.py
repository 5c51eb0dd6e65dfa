"""How far two results of the same computation may lie apart: the one table that every comparison uses."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# Relative to the largest magnitude of the reference. A float32 sum of n terms errs by about sqrt(n) * 6e-8, and a deep
# net chains some hundred of those; float16 keeps 11 bits.
EXACT: dict[np.dtype[Any], float] = {
    np.dtype(np.float16): 2e-2,
    np.dtype(np.float32): 1e-4,
    np.dtype(np.float64): 1e-10,
}

# A quantized model on another processor may err by so many times the energy of its error here, and besides by so much
# of the signal's energy. Ties that are rounded the other way draw the same error anew: its energy changes by a tenth.
# Sums that overflow in 16 bits make it 4 to 100 times as large. An error of 1 % of the signal is not worth a word.
ERROR_GROWTH = 2.0
ERROR_FLOOR = 1e-4

# Smaller references count as this: probabilities that are all nearly 0 differ by their own steps, which are absolute.
_SMALLEST_MAGNITUDE = 1e-2


def deviation(reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> float:
    """Largest difference over largest magnitude of the reference: 0 is equal, inf another shape, a lost or new NaN."""
    if reference.shape != candidate.shape or reference.dtype != candidate.dtype:
        return float("inf")
    if reference.dtype == object or not np.issubdtype(reference.dtype, np.inexact):
        return 0.0 if np.array_equal(reference, candidate) else float("inf")
    finite = np.isfinite(reference)
    if not np.array_equal(finite, np.isfinite(candidate)):
        return float("inf")
    if not np.array_equal(reference[~finite], candidate[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    a, b = reference[finite].astype(np.float64), candidate[finite].astype(np.float64)
    return float(np.abs(a - b).max() / max(float(np.abs(a).max()), _SMALLEST_MAGNITUDE))


def allowed(dtype: np.dtype[Any]) -> float:
    """The deviation that an exact pass may cause in a tensor of this type."""
    return EXACT.get(dtype, 0.0)
