"""Take inputs away from a linear map one group at a time, always knowing what the next one would cost.

For t = W x with the covariance S of x, taking the inputs g away and solving for the rest of W again raises the mean
squared error by

    tr( ((S^-1)_gg)^-1 (W^T W)_gg )

(the optimal brain surgeon of Hassibi and Stork, 1993, for groups of inputs of a linear layer). S^-1 and W^T W are kept
up to date by block elimination, so that a step costs no more than a product of a square matrix with a thin one.
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

    ``power`` is the mean square of W x about its mean.
    """

    def __init__(self, weight: Floats, covariance: Floats, ridge: float = 1e-3, floor: float = 1e-30) -> None:
        damped = covariance.copy()
        damped[np.diag_indices_from(damped)] += max(ridge * float(covariance.trace()) / len(covariance), floor)
        self._square = weight.T @ weight
        self.power = float((self._square * covariance).sum())
        self._inverse = np.asarray(scipy.linalg.inv(damped))

    def costs(self, groups: Sequence[Indices]) -> Floats:
        """By how much it would raise the mean squared error to take each of these groups of inputs away."""
        result = np.zeros(len(groups))
        for size in {len(g) for g in groups} - {0}:
            which = [i for i, g in enumerate(groups) if len(g) == size]
            at = np.stack([groups[i] for i in which])
            rows, columns = at[:, :, None], at[:, None, :]
            solved = np.linalg.solve(self._inverse[rows, columns], self._square[rows, columns])
            result[which] = np.trace(solved, axis1=1, axis2=2)
        return result

    def remove(self, group: Indices) -> None:
        """Take a group of inputs away."""
        if not len(group):
            return
        step = np.linalg.solve(self._inverse[np.ix_(group, group)], self._inverse[group])
        self._inverse -= self._inverse[:, group] @ step
        crossed = self._square[:, group] @ step
        self._square += step.T @ (self._square[np.ix_(group, group)] @ step) - crossed - crossed.T
