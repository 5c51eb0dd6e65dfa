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


class Seen:
    """What a layer with this weight and bias reads, and what it then misses of what it shall make, by group.

    ``weight`` (groups, outputs, inputs), ``bias`` (groups, outputs).
    """

    def __init__(self, weight: Floats, bias: Floats, has_bias: bool, rows: Iterable[Rows]) -> None:
        self.weight, self.bias, self._has_bias = weight, bias, has_bias
        groups, outputs, inputs = weight.shape
        self._train, self._held = ([Moments.empty(inputs, outputs) for _ in range(groups)] for _ in range(2))
        self._power = 0.0
        for x, t, is_held in rows:
            self._power += float(np.square(t[is_held]).sum())
            x, t = x.reshape(-1, groups, inputs), t.reshape(-1, groups, outputs)
            for g in range(groups):
                missing = t[:, g] - x[:, g] @ weight[g].T - bias[g]
                self._train[g].add(x[~is_held, g], missing[~is_held])
                self._held[g].add(x[is_held, g], missing[is_held])
        means = np.stack([m.gram[-1] / max(m.count, 1) for m in self._train]) * has_bias
        self._mean, self._missing = means[:, :-1], np.stack([m.cross[-1] / max(m.count, 1) for m in self._train])
        self.gram = np.stack([m.gram[:-1, :-1] / max(m.count, 1) for m in self._train])
        self.gram -= self._mean[:, :, None] * self._mean[:, None]
        self._cross = np.stack([m.cross[:-1] / max(m.count, 1) for m in self._train])
        self._cross -= self._mean[:, :, None] * self._missing[:, None]

    @property
    def counts(self) -> tuple[int, int]:
        """How many rows there are to solve with, and how many to judge by."""
        return self._train[0].count, self._held[0].count

    def damped(self, damping: float) -> Floats:
        """The second moments of the inputs, about their means where the bias is free."""
        power = np.diagonal(self.gram, axis1=1, axis2=2)
        added = damping * power + np.maximum(_FLOOR * power.mean(axis=1, keepdims=True), _TINY)
        return np.asarray(self.gram + added[..., None] * np.eye(power.shape[1]))

    def wanted(self, gram: Floats) -> Floats:
        """The weights that come nearest to what shall be made."""
        return np.asarray(self.weight + np.linalg.solve(gram, self._cross).swapaxes(1, 2))

    def with_bias(self, weight: Floats) -> tuple[Floats, Floats]:
        """A weight, and the bias that goes with it: the means are what they shall be."""
        change = self._missing - ((weight - self.weight) @ self._mean[..., None])[..., 0]
        return weight, self.bias + change * self._has_bias

    def error(self, weight: Floats, bias: Floats) -> float:
        """Squared error over squared output of samples that were held back."""
        changes = map(Affine, weight - self.weight, bias - self.bias)
        return sum(m.error(c) for m, c in zip(self._held, changes, strict=True)) / max(self._power, 1e-30)
