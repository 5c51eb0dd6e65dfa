"""What a layer reads and what it shall make, kept as second moments: to solve for its weights, and to judge them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from onnxopt.graph.layer import Floats
from onnxopt.numerics.least_squares import Affine, Moments

# Inputs (n, inputs of all groups x kernel), targets (n, channels), and which are held back (n,).
Rows = tuple[Floats, Floats, npt.NDArray[np.bool_]]
_FLOOR, _TINY = 1e-4, 1e-30
# What varies by less of the power of a tensor does not vary.
_STILL = 1e-9


def gather(weight: Floats, bias: Floats, rows: Iterable[Rows]) -> tuple[list[Moments], list[Moments]]:
    """What each group of a layer reads, and what it then misses of what it shall make: of the rows to solve with, and
    of those that are held back. ``weight`` (groups, outputs, inputs), ``bias`` (groups, outputs)."""
    groups, outputs, inputs = weight.shape
    train, held = ([Moments.empty(inputs, outputs) for _ in range(groups)] for _ in range(2))
    for x, t, is_held in rows:
        x, t = x.reshape(-1, groups, inputs), t.reshape(-1, groups, outputs)
        for g in range(groups):
            missing = t[:, g] - x[:, g] @ weight[g].T - bias[g]
            train[g].add(x[~is_held, g], missing[~is_held])
            held[g].add(x[is_held, g], missing[is_held])
    return train, held


class Seen:
    """What a layer with this weight and bias reads, and what it then misses of what it shall make, by group.

    ``weight`` (groups, outputs, inputs), ``bias`` (groups, outputs). ``gram`` are the second moments of the inputs,
    about their means where the bias is free: not where nothing was held back to judge it by. ``tells``: are there rows
    to judge by, and do the inputs of the others vary?
    """

    def __init__(self, weight: Floats, bias: Floats, has_bias: bool, rows: Iterable[Rows]) -> None:
        self.weight, self.bias = weight, bias
        train, held = gather(weight, bias, rows)
        judges = bool(held[0].count)
        self._free, self._judged = has_bias and judges, held if judges else train
        self._power = self._varies()
        count = max(train[0].count, 1)
        gram, cross = (np.stack(parts) / count for parts in ([m.gram for m in train], [m.cross for m in train]))
        self._mean, self._missing = gram[:, -1, :-1] * self._free, cross[:, -1] * self._free
        self.gram, self._cross = gram[:, :-1, :-1], cross[:, :-1]
        power = _trace(self.gram)
        self.gram -= self._mean[:, :, None] * self._mean[:, None]
        self._cross -= self._mean[:, :, None] * self._missing[:, None]
        self.tells = judges and _trace(self.gram) > _STILL * power

    def _varies(self) -> float:
        """The squared output that errors are measured by: about its means where the bias is free, if it varies."""
        whole, of_means = 0.0, 0.0
        for m, w, b in zip(self._judged, self.weight, self.bias, strict=True):
            whole += m.error(Affine(-w, -b))
            of_means += float(np.square(m.cross[-1] + m.gram[-1] @ np.append(w, b[:, None], axis=1).T).sum())
        varies = whole - self._free * of_means / max(self._judged[0].count, 1)
        return max(varies if varies > _STILL * whole else whole, _TINY)

    def damped(self, damping: float) -> Floats:
        """The second moments of the inputs, a share of the power of each added to it."""
        power = np.diagonal(self.gram, axis1=1, axis2=2)
        added = damping * power + np.maximum(_FLOOR * power.mean(axis=1, keepdims=True), _TINY)
        return np.asarray(self.gram + added[..., None] * np.eye(power.shape[1]))

    def wanted(self, gram: Floats) -> Floats:
        """The weights that come nearest to what shall be made."""
        return np.asarray(self.weight + np.linalg.solve(gram, self._cross).swapaxes(1, 2))

    def with_bias(self, weight: Floats) -> tuple[Floats, Floats]:
        """A weight, and the bias that goes with it: the means are what they shall be."""
        return weight, self.bias + self._missing - ((weight - self.weight) @ self._mean[..., None])[..., 0]

    def error(self, weight: Floats, bias: Floats) -> float:
        """Squared error over squared output, about its means where the bias is free, of samples that were held back;
        of all where none were."""
        changes = map(Affine, weight - self.weight, bias - self.bias)
        return sum(m.error(c) for m, c in zip(self._judged, changes, strict=True)) / self._power


def _trace(gram: Floats) -> float:
    return float(np.trace(gram, axis1=1, axis2=2).sum())
