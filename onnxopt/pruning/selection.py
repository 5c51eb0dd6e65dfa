"""In which order channels go, and what each further one costs.

Taking a channel away costs the rise of the least-squares error of each layer that reads it, solved anew, as a share of
what that layer makes. Channels go one by one, the cheapest first (``numerics.elimination``). What the error of a layer
means for the model's outputs differs from layer to layer: where blocks are to be compared, it is measured, with the
weights that do best without what went by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.stream import Stream, feeds, modest_batch
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.cutting import Cut
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
_NOTHING = 0.1


class Block(NamedTuple):
    """The classes of a block, the numbers of them that may stay (all, then ever fewer), and what each saves."""

    classes: Labels
    levels: Floats
    saving: float = 1.0

    @property
    def most(self) -> int:
        """How many may go."""
        return len(self.classes) - int(self.levels[-1])


class Path(NamedTuple):
    """A way down for some blocks together, as a row of states.

    ``blocks`` are their places in the list; ``kept`` (states, blocks) how many classes stay of each; ``error``
    (states,) what that costs; ``order`` are classes as they go, and ``gone`` (states,) how many of them went by then.
    """

    blocks: tuple[int, ...]
    kept: Floats
    error: Floats
    order: Labels
    gone: Labels


def by_score(blocks: Sequence[Block], score: Floats) -> list[Path]:
    """For each block, the classes with the lowest scores first; of equals, the first."""
    return [_scored(i, block, score) for i, block in enumerate(blocks)]


def by_data(
    model: Model,
    coupling: Coupling,
    blocks: Sequence[Block],
    score: Floats,
    context: Context,
    samples: int,
    probe: Probe | None = None,
) -> list[Path]:
    """Ways down, judged on at most so many samples, together for blocks that are read by the same layers: what is left
    of one can stand in for another, but not for both.

    Errors are the layers' own, or, with a ``probe``, those of the outputs. A block that no layer with constant weights
    reads (the inner product of attention) goes by ``score``: it costs the share of the block's score that goes, or,
    with a probe, what zeros in its place do.
    """
    readers = _readers_of(blocks, model, coupling)
    bundles = _bundles(blocks, readers)
    found = []
    for (i, *_), _ in (bundle for bundle in bundles if not bundle[1]):
        path = _scored(i, blocks[i], score / max(float(score[blocks[i].classes].sum()), 1e-30))
        found.append(path if probe is None else _masked(path, model, coupling, probe))
    shapes, start = context.shapes(model), probe.samples if probe is not None else 0
    batches = feeds(context, samples, modest_batch(context, shapes), start) if readers else []
    stream = Stream(model, batches, shapes, context.threads)
    for i, reader in enumerate(context.track(readers, "channels")):
        name = reader.layer.inputs[0].name
        share = stream.rest(name)
        limit = max(1, round(unrolled.enough_rows(reader.layer) / (share * len(batches))))
        reader.gather((x for (x,) in stream.read([name], share)), limit, context.rng())
        for members, mine in bundles:
            if mine and mine[-1] == i:
                found.append(_descend(members, blocks, [readers[j] for j in mine], probe))
                for j in mine:
                    readers[j].forget()
    return found


def unread(model: Model, coupling: Coupling, blocks: Sequence[Block]) -> bool:
    """Is there a block that no layer with constant weights reads?"""
    return any(not mine for _, mine in _bundles(blocks, _readers_of(blocks, model, coupling)))


def _readers_of(blocks: Sequence[Block], model: Model, coupling: Coupling) -> list[_Reader]:
    wanted = {int(c) for b in blocks for c in b.classes}
    return [r for r in _readers(model, coupling) if wanted.intersection(r.inputs)]


def _scored(i: int, block: Block, score: Floats) -> Path:
    order = block.classes[np.argsort(score[block.classes], kind="stable")[: block.most]]
    gone = (len(block.classes) - block.levels).astype(np.intp)
    return Path((i,), block.levels[:, None], np.concatenate(([0.0], np.cumsum(score[order])))[gone], order, gone)


def _masked(path: Path, model: Model, coupling: Coupling, probe: Probe) -> Path:
    """The same with the errors that the outputs have without what went."""
    gains = []
    for state in sorted({int(np.searchsorted(path.gone, share * path.gone[-1])) for share in _TRIED} - {0}):
        measured = probe.of(Cut(coupling, path.order[: path.gone[state]]).masked(model))
        gains += [(path.error[state], measured / max(path.error[state], 1e-30))] if np.isfinite(measured) else []
    return path._replace(error=_gained(path.error, gains))


def _gained(errors: Floats, gains: Sequence[tuple[float, float]]) -> Floats:
    """Errors times their gains: (error, gain) as they were measured, in between linear."""
    if not gains:
        return errors
    spent, gain = np.array(gains).T
    return np.maximum.accumulate(errors * np.interp(errors, spent, gain))


def _bundles(blocks: Sequence[Block], readers: Sequence[_Reader]) -> list[tuple[list[int], list[int]]]:
    """Blocks that must be judged together, and the readers to judge them by."""
    pairs = [
        (b, r) for b, block in enumerate(blocks) for r, x in enumerate(readers) if int(block.classes[0]) in x.inputs
    ]
    size = len(blocks) + len(readers)
    ends = np.array(pairs, np.intp).reshape(-1, 2) + np.array([0, len(blocks)])
    edges = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), (size, size))
    component = np.asarray(connected_components(edges, directed=False)[1])
    found: dict[int, tuple[list[int], list[int]]] = {}
    for b in range(len(blocks)):
        found.setdefault(int(component[b]), ([], []))[0].append(b)
    for r in range(len(readers)):
        found[int(component[len(blocks) + r])][1].append(r)
    return list(found.values())


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

    def costs(self, classes: Sequence[int]) -> Floats:
        """What each class would cost, as a share of the layer's power."""
        total = sum(part.costs([self.inputs[c][g] for c in classes]) for g, part in enumerate(self._parts))
        return np.asarray(total / max(sum(part.power for part in self._parts), 1e-30))

    def remove(self, c: int) -> None:
        """Do without a class from here on, if this reads it."""
        if c not in self.inputs:
            return
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


def _descend(members: Sequence[int], blocks: Sequence[Block], readers: Sequence[_Reader], probe: Probe | None) -> Path:
    """Take classes away level by level: of the next level of each block, the one that costs the least for what it
    saves; within it one by one, the cheapest first."""
    left = [blocks[b].classes.tolist() for b in members]
    down = [blocks[b].levels[::-1].astype(int).tolist() for b in members]
    kept, error, order, gone = [[d.pop() for d in down]], [0.0], [], [0]
    total = sum(blocks[b].most for b in members)
    tried = {max(1, round(share * total)) for share in _TRIED} if probe is not None else set()
    gains: list[tuple[float, float]] = []
    while any(down):
        options = [i for i, d in enumerate(down) if d]
        every = _costs([c for i in options for c in left[i]], readers)
        costs = dict(zip(options, np.split(every, np.cumsum([len(left[i]) for i in options])[:-1]), strict=True))
        rates = {i: _rate(costs[i], len(left[i]) - down[i][-1], blocks[members[i]].saving) for i in options}
        i = min(options, key=rates.__getitem__)
        spent, rest = error[-1], costs[i]
        while len(left[i]) > down[i][-1]:
            cheapest = int(np.argmin(rest))
            spent += max(float(rest[cheapest]), 0.0)
            order.append(left[i].pop(cheapest))
            for reader in readers:
                reader.remove(order[-1])
            rest = _costs(left[i], readers)
        kept.append([*kept[-1][:i], down[i].pop(), *kept[-1][i + 1 :]])
        error.append(spent)
        gone.append(len(order))
        passed = {t for t in tried if t <= len(order)}
        # Where nothing was lost so far, that says nothing of what is lost in the end.
        if probe is not None and (passed or (not any(down) and all(gain < _NOTHING for _, gain in gains))):
            measured = probe.error([r.solved() for r in readers])
            gains += [(spent, measured / max(spent, 1e-30))] if np.isfinite(measured) else []
            tried -= passed
    errors = _gained(np.array(error), gains)
    return Path(tuple(members), np.array(kept, np.float64), errors, np.array(order, np.intp), np.array(gone, np.intp))


def _costs(classes: Sequence[int], readers: Sequence[_Reader]) -> Floats:
    found = np.zeros(len(classes))
    for reader in readers:
        mine = [i for i, c in enumerate(classes) if c in reader.inputs]
        if mine:
            found[mine] += reader.costs([classes[i] for i in mine])
    return found


def _rate(costs: Floats, count: int, saving: float) -> float:
    """What the ``count`` cheapest cost for what they save."""
    return float(np.maximum(np.sort(costs)[:count], 0).sum()) / (count * max(saving, 1e-30))
