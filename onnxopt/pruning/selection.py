"""Choose the channels that the layers reading them can best do without, given what the samples make of them.

Taking a channel away costs the rise of the least-squares error of each layer that reads it, solved anew, as a share of
what that layer makes. Channels go one by one, the cheapest first (``numerics.elimination``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.stream import Stream, feeds
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.ir import Node
from onnxopt.graph.labels import Labels
from onnxopt.graph.layer import Floats, layout
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.numerics.elimination import Elimination
from onnxopt.numerics.least_squares import Moments
from onnxopt.numerics.patches import sample_positions

# What is left of a covariance that cancels, relative to the mean square.
_ROUNDING = 1e-12


class Quota(NamedTuple):
    """The classes of a block, and how many of them go."""

    block: Labels
    goes: int


def by_score(quota: Quota, score: Floats) -> Labels:
    """The classes with the lowest scores; of equals, the first."""
    return quota.block[np.argsort(score[quota.block], kind="stable")[: quota.goes]]


def by_data(
    model: Model,
    coupling: Coupling,
    quotas: Sequence[Quota],
    score: Floats,
    context: Context,
    samples: int,
) -> list[Labels]:
    """For each quota the classes that go, judged on at most so many samples.

    A block that no layer with constant weights reads (the inner product of attention) goes by ``score``.
    """
    wanted = {int(c) for q in quotas for c in q.block}
    readers = [r for r in _readers(model, coupling) if wanted.intersection(r.inputs)]
    of_quota = [[i for i, r in enumerate(readers) if int(q.block[0]) in r.inputs] for q in quotas]
    chosen = {k: by_score(q, score) for k, q in enumerate(quotas) if not of_quota[k]}
    batches = feeds(context, samples) if readers else []
    stream = Stream(model, batches, context.shapes(model), context.threads)
    for i, reader in enumerate(context.track(readers, "channels")):
        name = reader.layer.inputs[0].name
        share = stream.rest(name)
        limit = max(1, round(unrolled.enough_rows(reader.layer) / (share * len(batches))))
        reader.gather((x for (x,) in stream.read([name], share)), limit, context.rng())
        for k, quota in enumerate(quotas):
            if of_quota[k] and of_quota[k][-1] == i:
                chosen[k] = _cheapest(quota, [readers[j] for j in of_quota[k]])
        waiting = {j for k, js in enumerate(of_quota) if k not in chosen for j in js}
        for j in set(range(i + 1)) - waiting:
            readers[j].forget()
    return [chosen[k] for k in range(len(quotas))]


class _Reader:
    """A layer that sums over channels. ``inputs`` are, by class and group of the layer, its columns of the weight."""

    def __init__(self, layer: Node, classes: Labels) -> None:
        self.layer = layer
        groups, width = layout(layer).shape[0], layout(layer).shape[3]
        by_group = classes.reshape(groups, -1)
        columns = np.arange(by_group.shape[1] * width).reshape(-1, width)
        self.inputs = {int(c): [columns[part == c].ravel() for part in by_group] for c in np.unique(classes) if c}
        self._parts: list[Elimination] = []

    def gather(self, batches: Iterable[Array], limit: int, rng: np.random.Generator) -> None:
        """Take in what reaches the layer, at most ``limit`` rows of each batch."""
        weight, _ = unrolled.read(self.layer)
        moments = [Moments.empty(weight.shape[2], 0) for _ in weight]
        for batch in batches:
            rows = unrolled.Rows(self.layer, batch)
            x = rows.at(sample_positions(rows.count, limit, rng))
            x = x[np.isfinite(x).all(axis=1)].reshape(-1, *weight.shape[::2])
            for g, part in enumerate(moments):
                part.add(x[:, g], np.zeros((len(x), 0)))
        self._parts = [
            Elimination(w, m.covariance, floor=_ROUNDING * m.mean_square + 1e-30)
            for w, m in zip(weight, moments, strict=True)
        ]

    def costs(self, classes: Sequence[int]) -> Floats:
        """What each class would cost, as a share of the layer's power."""
        total = sum(part.costs([self.inputs[c][g] for c in classes]) for g, part in enumerate(self._parts))
        return np.asarray(total / max(sum(part.power for part in self._parts), 1e-30))

    def remove(self, c: int) -> None:
        """Do without a class from here on."""
        for g, part in enumerate(self._parts):
            part.remove(self.inputs[c][g])

    def forget(self) -> None:
        """Let go of the matrices."""
        self._parts = []


def _readers(model: Model, coupling: Coupling) -> list[_Reader]:
    found = []
    for node, slot, axis in coupling.contractions:
        if node.op in unrolled.LAYERS and node.is_standard and slot == 0 and not unrolled.fault(node):
            found.append(_Reader(node, coupling.input(node, slot, axis)))
    return found


def _cheapest(quota: Quota, readers: Sequence[_Reader]) -> Labels:
    left, gone = quota.block.tolist(), []
    for _ in range(quota.goes):
        costs = np.sum([r.costs(left) for r in readers], axis=0)
        gone.append(left.pop(int(np.argmin(costs))))
        for reader in readers:
            reader.remove(gone[-1])
    return np.array(gone, np.intp)
