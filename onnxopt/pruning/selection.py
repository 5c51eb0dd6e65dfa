"""In which order the channels of a block go, and what each further one costs.

Taking a channel away costs the rise of the least-squares error of each layer that reads it, solved anew, as a share of
what that layer makes. Channels go one by one, the cheapest first (``numerics.elimination``). What the error of a layer
means for the model's outputs differs from layer to layer: where blocks are to be compared, it is measured, with the
weights that do best without what went by then.
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
from onnxopt.pruning.probe import Probe, Replacement

# What is left of a covariance that cancels, relative to the mean square.
_ROUNDING = 1e-12
# Shares of a block without which its layers are tried in the model.
_TRIED = (0.25, 0.6)


class Block(NamedTuple):
    """The classes of a block, and the numbers of them that may stay: all, then ever fewer."""

    classes: Labels
    levels: Floats

    @property
    def most(self) -> int:
        """How many may go."""
        return len(self.classes) - int(self.levels[-1])


class Ranking(NamedTuple):
    """The classes that may go in their order, and ``error[i]``: what it costs to do without the first i of them."""

    order: Labels
    error: Floats


def by_score(block: Block, score: Floats) -> Ranking:
    """The classes with the lowest scores first; of equals, the first."""
    order = block.classes[np.argsort(score[block.classes], kind="stable")[: block.most]]
    return Ranking(order, np.concatenate(([0.0], np.cumsum(score[order]))))


def by_data(
    model: Model,
    coupling: Coupling,
    blocks: Sequence[Block],
    score: Floats,
    context: Context,
    samples: int,
    probe: Probe | None = None,
) -> list[Ranking]:
    """Rank the classes of each block on at most so many samples.

    With a ``probe`` each block is judged by itself, and its errors are those of the outputs; without, it is known how
    many go of each, and the layers that read several blocks have lost the former when it is the turn of the next. A
    block that no layer with constant weights reads (the inner product of attention) goes by ``score``.
    """
    wanted = {int(c) for b in blocks for c in b.classes}
    readers = [r for r in _readers(model, coupling) if wanted.intersection(r.inputs)]
    of_block = [[i for i, r in enumerate(readers) if int(b.classes[0]) in r.inputs] for b in blocks]
    found = {k: by_score(b, score) for k, b in enumerate(blocks) if not of_block[k]}
    batches = feeds(context, samples) if readers else []
    stream = Stream(model, batches, context.shapes(model), context.threads)
    for i, reader in enumerate(context.track(readers, "channels")):
        name = reader.layer.inputs[0].name
        share = stream.rest(name)
        limit = max(1, round(unrolled.enough_rows(reader.layer) / (share * len(batches))))
        reader.gather((x for (x,) in stream.read([name], share)), limit, context.rng())
        for k, block in enumerate(blocks):
            if of_block[k] and of_block[k][-1] == i:
                mine = [readers[j] for j in of_block[k]]
                found[k] = _cheapest(block, mine) if probe is None else _probed(block, [r.copy() for r in mine], probe)
        waiting = {j for k, js in enumerate(of_block) if k not in found for j in js}
        for j in set(range(i + 1)) - waiting:
            readers[j].forget()
    return [found[k] for k in range(len(blocks))]


class _Reader:
    """A layer that sums over channels. ``inputs`` are, by class and group of the layer, its columns of the weight."""

    def __init__(self, layer: Node, classes: Labels) -> None:
        self.layer = layer
        groups, width = layout(layer).shape[0], layout(layer).shape[3]
        by_group = classes.reshape(groups, -1)
        columns = np.arange(by_group.shape[1] * width).reshape(-1, width)
        self.inputs = {int(c): [columns[part == c].ravel() for part in by_group] for c in np.unique(classes) if c}
        self._parts: list[Elimination] = []
        self._means = np.zeros((groups, 0))

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
        self._means = np.array([m.mean for m in moments])
        self._parts = [
            Elimination(w, m.covariance, floor=_ROUNDING * m.mean_square + 1e-30)
            for w, m in zip(weight, moments, strict=True)
        ]

    def copy(self) -> _Reader:
        """The same, to take other classes away from."""
        other = object.__new__(_Reader)
        other.layer, other.inputs, other._means = self.layer, self.inputs, self._means
        other._parts = [part.copy() for part in self._parts]
        return other

    def costs(self, classes: Sequence[int]) -> Floats:
        """What each class would cost, as a share of the layer's power."""
        total = sum(part.costs([self.inputs[c][g] for c in classes]) for g, part in enumerate(self._parts))
        return np.asarray(total / max(sum(part.power for part in self._parts), 1e-30))

    def remove(self, c: int) -> None:
        """Do without a class from here on."""
        for g, part in enumerate(self._parts):
            part.remove(self.inputs[c][g])

    def solved(self) -> Replacement:
        """The weights that do best without what was removed. The bias keeps the mean."""
        old, bias = unrolled.read(self.layer)
        new = np.stack([part.weight for part in self._parts])
        return Replacement(self.layer, new, bias + ((old - new) @ self._means[:, :, None])[:, :, 0])

    def forget(self) -> None:
        """Let go of the matrices."""
        self._parts = []


def _readers(model: Model, coupling: Coupling) -> list[_Reader]:
    found = []
    outer = {id(n) for n in model.graph.nodes if n.is_standard and n.op in unrolled.LAYERS}
    for node, slot, axis in coupling.contractions:
        # A stream does not read what is inside bodies.
        if id(node) in outer and slot == 0 and not unrolled.fault(node):
            found.append(_Reader(node, coupling.input(node, slot, axis)))
    return found


def _cheapest(block: Block, readers: Sequence[_Reader], at: dict[int, list[Replacement]] | None = None) -> Ranking:
    """Take classes away one by one. ``at`` gets the layers as they are when so many, its keys, are gone."""
    left, gone, error = block.classes.tolist(), [], [0.0]
    for _ in range(block.most):
        costs = np.sum([r.costs(left) for r in readers], axis=0)
        cheapest = int(np.argmin(costs))
        error.append(error[-1] + max(float(costs[cheapest]), 0.0))
        gone.append(left.pop(cheapest))
        for reader in readers:
            reader.remove(gone[-1])
        if at is not None and len(gone) in at:
            at[len(gone)] = [r.solved() for r in readers]
    return Ranking(np.array(gone, np.intp), np.array(error))


def _probed(block: Block, readers: Sequence[_Reader], probe: Probe) -> Ranking:
    """The same, with errors of the outputs: those that are measured after some steps, and between them in proportion
    to the layers' own."""
    tried = sorted({min(block.most, max(1, round(share * len(block.classes)))) for share in _TRIED})
    at: dict[int, list[Replacement]] = {n: [] for n in tried}
    order, local = _cheapest(block, readers, at)
    gains = [probe.error(at[n]) / max(float(local[n]), 1e-30) for n in tried]
    error = local * np.interp(np.arange(len(local)), tried, gains)
    return Ranking(order, np.maximum.accumulate(error))
