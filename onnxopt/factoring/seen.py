"""What reaches a layer, as second moments: of one alone, or of what it makes and shall make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.stream import modest_batch
from onnxopt.factoring.site import Site
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.numerics.least_squares import Affine, Moments
from onnxopt.numerics.patches import sample_positions
from onnxopt.pruning.repair import Place, Rows

# Second moments together stay in this much memory.
_BYTES = 2**28
# What varies by less of the power of a tensor does not vary.
_TINY = 1e-9


def rounds(sites: Sequence[Site]) -> Iterator[list[Site]]:
    """As many layers at a time as there is room for the second moments of."""
    part: list[Site] = []
    room = _BYTES
    for site in sites:
        needs = 8 * site.width**2 if site.width <= unrolled.WIDEST and not site.is_table else 0
        if part and needs > room:
            yield part
            part, room = [], _BYTES
        part.append(site)
        room -= needs
    if part:
        yield part


def moments(model: Model, sites: Sequence[Site], context: Context, samples: int, level: float) -> dict[Site, Floats]:
    """E[x x^T] of what goes into each layer of the main graph, (inputs x kernel) squared, of trace 1, about the mean
    where a bias can make good for that; of tables how often each row is looked up, (rows,). Layers of which nothing can
    be told are left out. ``level`` of the power is spread over all inputs: samples are few, and what they do not show
    may still come."""
    watched = [s for s in sites if s.graph is model.graph and (s.is_table or s.width <= unrolled.WIDEST)]
    if not watched:
        return {}
    sums = {s: np.zeros(s.sizes[1] if s.is_table else (s.width, s.width)) for s in watched}
    means = {s: np.zeros(s.width) for s in watched if s.solvable and s.has_bias(model)}
    count = dict.fromkeys(means, 0)
    names = list(dict.fromkeys(s.x.name for s in watched))
    batch = modest_batch(context, context.shapes(model))
    parts = -(-min(samples, context.dataset.count) // batch)
    for values in context.activations(model, names, samples, batch):
        for site, total in sums.items():
            x = values[site.x.name]
            if site.is_table:
                total += np.bincount(np.asarray(x, np.intp).ravel() % len(total), minlength=len(total))
            else:
                rows = _rows(site, x, parts, context.rng())
                total += rows.T @ rows
                if site in means:
                    means[site] += rows.sum(axis=0)
                    count[site] += len(rows)
    found = {}
    for site, total in sums.items():
        varies = total - np.outer(means[site], means[site]) / max(count[site], 1) if site in means else total
        if _power(varies) > _TINY * _power(total):
            found[site] = _levelled(varies, level)
    return found


def _rows(site: Site, x: np.ndarray, parts: int, rng: np.random.Generator) -> Floats:
    rows = unrolled.Rows(site.node, site.read(x))
    at = sample_positions(rows.count, max(1, unrolled.enough(site.width) // parts), rng)
    chosen = rows.at(at).astype(np.float64)
    return np.asarray(chosen[np.isfinite(chosen).all(axis=1)])


def _power(total: Floats) -> float:
    return float(total.sum() if total.ndim == 1 else np.trace(total))


def _levelled(moment: Floats, level: float) -> Floats:
    """Of trace 1, a bit of it in every direction."""
    size = len(moment)
    if moment.ndim == 1:
        return np.asarray((moment / moment.sum() + level / size) / (1 + level))
    return np.asarray((moment / np.trace(moment) + level / size * np.eye(size)) / (1 + level))


@dataclass(frozen=True, kw_only=True)
class Seat(Place):
    """Where to see what reaches a layer, whichever way its matrices are turned."""

    site: Site

    @classmethod
    def of(cls, site: Site) -> Seat:
        return cls(site.node, np.ones(site.sizes[0], np.bool_), True, site=site)

    @property
    def source(self) -> str:
        return str(self.site.x.name)

    @property
    def enough(self) -> int:
        return unrolled.enough(self.site.width)

    def read(self, x: Array) -> Array:
        return self.site.read(x)

    def write(self, y: Array) -> Array:
        return self.site.write(y)


class Seen:
    """What a layer with this ``weight`` (outputs, inputs) and ``bias`` (outputs,) reads, and what it then misses of
    what it shall make."""

    def __init__(self, weight: Floats, bias: Floats, has_bias: bool, rows: Iterator[Rows]) -> None:
        self.weight, self.bias, self._has_bias = weight, bias, has_bias
        outputs, inputs = weight.shape
        self._train, self._held = (Moments.empty(inputs, outputs) for _ in range(2))
        powers, sums = np.zeros(2), np.zeros((2, outputs))
        for x, t, is_held in rows:
            missing = t - x @ weight.T - bias
            for i, (part, at) in enumerate(((self._train, ~is_held), (self._held, is_held))):
                part.add(x[at], missing[at])
                powers[i] += float(np.square(t[at]).sum())
                sums[i] += t[at].sum(axis=0)
        held = 1 if self._held.count else 0
        if not held:
            self._held = self._train
        of_means = float(np.square(sums[held]).sum()) / max(self._held.count, 1) * has_bias
        whole = float(powers[held])
        varies = whole - of_means
        self._power = varies if varies > _TINY * whole else max(whole, 1e-30)
        z = self._train.gram[-1] / max(self._train.count, 1) * has_bias
        self._mean = z[:-1]
        self._missing = self._train.cross[-1] / max(self._train.count, 1) * has_bias
        count = max(self._train.count, 1)
        self._gram = self._train.gram[:-1, :-1] / count - np.outer(self._mean, self._mean)
        self._cross = self._train.cross[:-1] / count - np.outer(self._mean, self._missing)

    @property
    def tells(self) -> bool:
        """Did anything reach it?"""
        return bool(np.trace(self._gram) > _TINY * np.trace(self._train.gram[:-1, :-1]) / max(self._train.count, 1))

    def damped(self, damping: float) -> Floats:
        """The second moments of the inputs, about their means where the bias is free."""
        size = len(self._gram)
        return np.asarray(self._gram + damping * np.trace(self._gram) / size * np.eye(size))

    def wanted(self, gram: Floats) -> Floats:
        """The weights that come nearest to what shall be made, of whatever rank."""
        return np.asarray(self.weight + np.linalg.solve(gram, self._cross).T)

    def with_bias(self, weight: Floats) -> Floats:
        """The bias that goes with a weight: the means are what they shall be."""
        return np.asarray(self.bias + self._missing - (weight - self.weight) @ self._mean)

    def error(self, weight: Floats, bias: Floats) -> float:
        """Of samples that were held back, squared error over squared target: about its mean where the bias is free."""
        return self._held.error(Affine(weight - self.weight, bias - self.bias)) / self._power
