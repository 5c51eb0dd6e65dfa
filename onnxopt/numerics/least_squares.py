"""Linear least squares from second moments that are gathered as a stream.

For rows x (inputs) and t (targets) the best ``t ~ weight @ x + bias`` depends on the data only through sums of
products, so memory is set by the widths and not by the number of rows, and parts gathered apart add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg

Floats = npt.NDArray[np.float64]
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


class Affine(NamedTuple):
    """``t = weight @ x + bias``; weight (targets, inputs), bias (targets,), float64."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True)
class Moments:
    """Sums over rows, with z = [x; 1]: ``gram`` z z^T, ``cross`` z t^T and ``power`` t^2, all float64.

    Shapes (inputs + 1, inputs + 1), (inputs + 1, targets) and (targets,). ``gram[-1, -1]`` is the number of rows.
    """

    gram: Floats
    cross: Floats
    power: Floats

    @classmethod
    def empty(cls, inputs: int, targets: int) -> Moments:
        return cls(np.zeros((inputs + 1, inputs + 1)), np.zeros((inputs + 1, targets)), np.zeros(targets))

    @classmethod
    def of(cls, x: npt.NDArray[Any], t: npt.NDArray[Any]) -> Moments:
        """The moments of rows ``x`` (n, inputs) and ``t`` (n, targets)."""
        z = np.empty((len(x), x.shape[1] + 1))
        z[:, :-1], z[:, -1] = x, 1.0
        t = np.asarray(t, np.float64)
        return cls(z.T @ z, z.T @ t, (t * t).sum(axis=0))

    @property
    def count(self) -> int:
        return int(self.gram[-1, -1])

    @property
    def mean(self) -> Floats:
        """The mean of the inputs over the rows, (inputs,)."""
        return np.asarray(self.gram[-1, :-1] / max(self.gram[-1, -1], 1.0))

    @property
    def covariance(self) -> Floats:
        """The covariance of the inputs over the rows, (inputs, inputs)."""
        scaled = self.gram / max(self.gram[-1, -1], 1.0)
        return np.asarray(scaled[:-1, :-1] - np.outer(scaled[-1, :-1], scaled[-1, :-1]))

    @property
    def mean_square(self) -> float:
        """The mean of the squared inputs, over rows and inputs."""
        return float(np.trace(self.gram[:-1, :-1]) / max(self.gram[-1, -1], 1.0) / max(len(self.gram) - 1, 1))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.gram + other.gram, self.cross + other.cross, self.power + other.power)

    def add(self, x: npt.NDArray[Any], t: npt.NDArray[Any]) -> None:
        """Add rows in place, without a second copy of the matrices."""
        part = Moments.of(x, t)
        for mine, theirs in ((self.gram, part.gram), (self.cross, part.cross), (self.power, part.power)):
            mine += theirs

    def keep(self, inputs: Sequence[int] | npt.NDArray[np.intp]) -> Moments:
        """The moments as if only these columns of x had been gathered."""
        rows = np.append(np.asarray(inputs, np.intp), len(self.gram) - 1)
        return Moments(self.gram[np.ix_(rows, rows)], self.cross[rows], self.power)

    def solve(self, ridge: float = 1e-4) -> Affine:
        """Minimise |t - weight x - bias|^2 + penalty |weight|^2; the bias is free.

        ``ridge`` is relative: the penalty is ``ridge`` times the mean variance of the inputs (times the rows).
        """
        count = max(self.gram[-1, -1], 1.0)
        mean_x, mean_t = self.gram[-1, :-1] / count, self.cross[-1] / count
        centred = self.gram[:-1, :-1] - count * np.outer(mean_x, mean_x)
        rhs = self.cross[:-1] - count * np.outer(mean_x, mean_t)
        centred[np.diag_indices_from(centred)] += ridge * max(float(centred.trace()), 0.0) / max(len(centred), 1)
        weight = _solve_positive(centred, rhs).T
        return Affine(weight, mean_t - weight @ mean_x)

    def error(self, fit: Affine) -> float:
        """Sum over the rows and targets of the squared residual of ``fit``."""
        w = np.concatenate((fit.weight, fit.bias[:, None]), axis=1)
        return max(0.0, float(self.power.sum() - 2 * (w * self.cross.T).sum() + ((w @ self.gram) * w).sum()))


def fit(train: Moments, held_back: Moments, ridges: Sequence[float] = RIDGES) -> tuple[Affine, float]:
    """The solution on ``train`` whose ridge does best on ``held_back``, and that ridge."""
    candidates = [(train.solve(ridge), ridge) for ridge in ridges]
    return min(candidates, key=lambda candidate: held_back.error(candidate[0]))


def _solve_positive(a: Floats, b: Floats) -> Floats:
    """Solve a x = b for symmetric ``a``: by Cholesky, or with the least norm where ``a`` is not positive definite."""
    try:
        return np.asarray(scipy.linalg.cho_solve(scipy.linalg.cho_factor(a), b))
    except scipy.linalg.LinAlgError:
        values, vectors = scipy.linalg.eigh(a)
        usable = values > values[-1:].clip(0) * len(values) * np.finfo(np.float64).eps
        inverse = np.divide(1.0, values, out=np.zeros_like(values), where=usable)
        return np.asarray((vectors * inverse) @ (vectors.T @ b))
