"""Take inputs away from a linear map one group at a time, always knowing what the next one would cost.

For t = W x with the covariance S of x, taking the inputs g away and solving for the rest of W again raises the mean
squared error by

    tr( W_g^T W_g ((S^-1)_gg)^-1 )

(the optimal brain surgeon of Hassibi and Stork, 1993, for groups of inputs of a linear layer). S^-1 and W are kept up
to date by block elimination, so that a step costs no more than a product of a square matrix with a thin one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.linalg

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


class Elimination:
    """``weight`` (outputs, inputs), ``covariance`` (inputs, inputs); ``ridge`` is relative to the mean variance,
    ``floor`` is the least that is added to it: the rounding of a covariance that is all cancellation.

    ``power`` is the mean square of W x about its mean. ``weight`` becomes the map that does best without what was
    taken away, whose columns are zero.
    """

    def __init__(self, weight: Floats, covariance: Floats, ridge: float = 1e-3, floor: float = 1e-30) -> None:
        damped = covariance.copy()
        damped[np.diag_indices_from(damped)] += max(ridge * float(covariance.trace()) / len(covariance), floor)
        self.weight = weight.copy()
        self.power = float(((weight @ covariance) * weight).sum())
        self._inverse = np.asarray(scipy.linalg.inv(damped, overwrite_a=True))

    def copy(self) -> Elimination:
        """The same state, to take other inputs away from."""
        other = object.__new__(Elimination)
        other.weight, other.power, other._inverse = self.weight.copy(), self.power, self._inverse.copy()
        return other

    def costs(self, groups: Sequence[Indices]) -> Floats:
        """By how much it would raise the mean squared error to take each of these groups of inputs away."""
        result = np.zeros(len(groups))
        for size in {len(g) for g in groups} - {0}:
            which = [i for i, g in enumerate(groups) if len(g) == size]
            at = np.stack([groups[i] for i in which])
            columns = self.weight[:, at].transpose(1, 0, 2)
            square = columns.transpose(0, 2, 1) @ columns
            solved = np.linalg.solve(self._inverse[at[:, :, None], at[:, None, :]], square)
            result[which] = np.trace(solved, axis1=1, axis2=2)
        return result

    def remove(self, group: Indices) -> None:
        """Take a group of inputs away."""
        if not len(group):
            return
        step = np.linalg.solve(self._inverse[np.ix_(group, group)], self._inverse[group])
        self._inverse -= self._inverse[:, group] @ step
        self.weight -= self.weight[:, group] @ step
        self.weight[:, group] = 0.0
