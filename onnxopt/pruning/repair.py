"""Make the layers behind removed channels answer as before: closed-form least squares, layer by layer.

In the order of the graph, every layer that lost inputs, or that lies behind one that did, gets new weights and a new
bias: from what reaches it in the model as cut and solved so far, it shall make what it made in the original. Where its
result is added to another, the sum of both is the target, so that each block also makes good what came before it.
(He, Zhang and Sun, Channel Pruning for Accelerating Very Deep Neural Networks, 2017.) No labels, no training.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.pass_ import label
from onnxopt.core.seen import Rows, gather
from onnxopt.core.stream import Stream, feeds, modest_batch
from onnxopt.graph.ir import Node, is_constant, reads
from onnxopt.graph.layer import Floats, layout
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.numerics.least_squares import Affine, Moments, fit
from onnxopt.numerics.patches import sample_positions

Mask = npt.NDArray[np.bool_]
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# The most that an output is stretched by.
_STRETCH = 2.0


@dataclass(frozen=True)
class Place:
    """A layer that may be solved anew: which outputs of the original it still has, and whether it lost inputs.

    ``made`` is what the original calls its result, where that is no longer its name here.
    """

    layer: Node
    outputs: Mask
    shortened: bool
    made: str = ""

    @classmethod
    def whole(cls, layer: Node) -> Place:
        """A layer with all of its outputs, to be solved for whatever reaches it."""
        return cls(layer, np.ones(layout(layer).outputs, np.bool_), True)

    @property
    def target(self) -> str:
        """The tensor of the original that the layer shall make."""
        return self.made or str(self.layer.outputs[0].name)

    @property
    def source(self) -> str:
        """The tensor that reaches the layer."""
        return str(self.layer.inputs[0].name)

    @property
    def enough(self) -> int:
        """On how many rows to solve for it."""
        return unrolled.enough_rows(self.layer)

    def read(self, x: Array) -> Array:
        """What reaches it, as ``unrolled`` likes it: a product's inputs on the last axis."""
        return x

    def write(self, y: Array) -> Array:
        """Likewise what it makes."""
        return y


@dataclass(frozen=True)
class Repaired:
    """Squared error over squared target on held-back samples, before and after, and the ridge that did best on them."""

    layer: str
    before: float
    after: float
    ridge: float
    rows: int


def repair(
    model: Model,
    original: Model,
    places: Sequence[Place],
    context: Context,
    samples: int,
    changed: Collection[str] = (),
    carried: dict[int, Floats] | None = None,
    *,
    spread: bool = True,
) -> list[Repaired]:
    """Solve the places that lie behind what was cut, on at most so many samples.

    ``changed`` are names of tensors that are others than they were for another reason. ``carried`` keeps, from one
    repair to the next, what was added behind each MatMul (its ``id``), by output of the original. The model is
    changed, the original is not. With ``spread``, what single layers make varies as much as it did.
    """
    model.tidy()
    added = {} if carried is None else carried
    shapes = context.shapes(original)
    seen = observed(model, original, _behind(model, places, changed), context, samples, "repair")
    return [
        _solve(model, place, rows, added, spread=spread and not _beside(model, place, shapes)) for place, rows in seen
    ]


def observed(
    model: Model, original: Model, places: Sequence[Place], context: Context, samples: int, doing: str
) -> Iterator[tuple[Place, Iterator[Rows]]]:
    """Each place in turn, which may be changed then, and rows of what reaches it and what it shall make of them."""
    if not places:
        return
    shapes = context.shapes(original)
    batches = feeds(context, samples, modest_batch(context, shapes))
    now, then = (Stream(m, batches, shapes, context.threads) for m in (model, original))
    few = min(samples, context.dataset.count) < 5
    batch = 1 if context.dataset.batching.whole else next((len(v) for v in batches[0].values() if v.ndim), 1)
    for i, place in enumerate(context.track(places, doing)):
        name = place.source
        share = min(now.rest(name), then.rest(name))
        beside = _beside(model, place, shapes)
        if beside and now.passes(beside, [p.layer for p in places[i:]]):
            beside = ""
        pairs = _pairs(place, beside, now, then, share)
        limit = max(1, round(place.enough / (share * len(batches))))
        yield place, _rows(place.layer, pairs, limit, batch, few, context.rng())


def _behind(model: Model, places: Sequence[Place], names: Collection[str]) -> list[Place]:
    """The places whose inputs are no longer what they were, in the order of the graph."""
    by_layer = {id(p.layer): p for p in places}
    changed = {id(t) for node in model.graph.nodes for t in node.outputs if t.name in names}
    found = []
    for node in model.graph.nodes:
        place = by_layer.get(id(node))
        if (place is not None and place.shortened) or any(id(t) in changed for t in reads(node)):
            changed.update(map(id, node.outputs))
            if place is not None and not unrolled.fault(node) and not _is_depthwise(node):
                found.append(place)
    return found


def _is_depthwise(layer: Node) -> bool:
    """One input for each output has hardly anything to make good with."""
    view = layout(layer)
    return view.shape[0] > 1 and view.shape[view.into] == 1


def _beside(model: Model, place: Place, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The computed tensor that the layer's result is added to, perhaps after a constant, if that is its only use."""
    y = place.layer.outputs[0]
    while len(y.outputs) == 1 and all(y is not t for t in model.graph.outputs):
        node = y.outputs[0]
        other = next((t for t in node.inputs if t is not y), y)
        if node.op != "Add" or not node.is_standard or other is y:
            return ""
        if not is_constant(other):
            same = shapes.get(other.name) == shapes[place.target]
            return str(other.name) if same else ""
        y = node.outputs[0]
    return ""


def _pairs(place: Place, beside: str, now: Stream, then: Stream, share: float) -> Iterator[tuple[Array, Array]]:
    """What reaches a layer and what it shall make of it, batch by batch."""
    more = [beside] if beside else []
    axis = 1 if place.layer.op.startswith("Conv") else -1
    reached = now.read([place.source, *more], share)
    targets = then.read([place.target, *more], share)
    for (x, *got), wanted in zip(reached, targets, strict=True):
        y, *added = (np.compress(place.outputs, place.write(t), axis) for t in wanted)
        yield place.read(x), _sum(y, added[0], place.write(got[0])) if more else y


def _sum(y: Array, added: Array, got: Array) -> Array:
    """What was added goes on top, what is added now goes off; in float32 at least."""
    with np.errstate(invalid="ignore"):
        return np.asarray(y.astype(np.promote_types(y.dtype, np.float32), copy=False) + added - got)


def _rows(
    layer: Node, pairs: Iterator[tuple[Array, Array]], limit: int, batch: int, few: bool, rng: np.random.Generator
) -> Iterator[Rows]:
    """At most ``limit`` rows of inputs and targets of each batch, and which to hold back: those of every fifth sample.

    ``batch`` is how many samples the first holds, whose rows lie one behind the other, as behind a Reshape that makes
    one axis of samples and tokens; a sample alone may have as many as it likes. With ``few`` samples it is every fifth
    row.
    """
    sample = stride = 0
    for x, y in pairs:
        rows, targets = unrolled.Rows(layer, x), unrolled.targets(layer, y)
        at = sample_positions(rows.count, limit, rng)
        if batch == 1 or not stride:
            stride = max(1, rows.count // (len(x) if rows.count % batch else batch))
        of = np.arange(len(at)) if few else sample + at // stride
        sample += rows.count // stride
        into, out = rows.at(at).astype(np.float64), targets[at].astype(np.float64)
        fit = np.isfinite(into).all(axis=1) & np.isfinite(out).all(axis=1)
        yield into[fit], out[fit], (of % 5 == 4)[fit]


def _solve(
    model: Model, place: Place, batches: Iterator[Rows], carried: dict[int, Floats], *, spread: bool
) -> Repaired:
    """Solve for the change of weights and bias, group by group: so a large ridge leaves the layer as it is.

    With ``spread``, what the layer makes varies as much as what it shall make.
    """
    weight, bias = unrolled.read(place.layer)
    behind = carried.setdefault(id(place.layer), np.zeros(len(place.outputs)))
    already = behind[place.outputs].reshape(bias.shape)
    bias += already
    train, held = gather(weight, bias, batches)
    power = max(1e-30, sum(m.error(Affine(-w, -b)) for m, w, b in zip(held, weight, bias, strict=True)))
    before, after, best = 0.0, 0.0, 0.0
    for g in range(len(weight)):
        change, ridge = fit(train[g], held[g], _RIDGES)
        unchanged = changed = float(held[g].power.sum())
        if held[g].error(change) < unchanged:
            change = _spread(train[g], weight[g], change) if spread else change
            changed, best = held[g].error(change), max(best, ridge)
            weight[g] += change.weight
            bias[g] += change.bias
        before, after = before + unchanged, after + changed
    if best:
        unrolled.write(model, place.layer, weight, bias - already)
        if place.layer.op == "MatMul":
            behind[place.outputs] = bias.reshape(-1)
    return Repaired(label(place.layer), before / power, after / power, best, train[0].count + held[0].count)


def _spread(seen: Moments, weight: Floats, change: Affine) -> Affine:
    """The change with which each output also has the variance that is wanted of it.

    Least squares make outputs vary less than their targets, by what they leave unexplained, and over many layers the
    answers fade (the variance collapse of Jordan et al., REPAIR, 2023). Such outputs are stretched about their mean.
    """
    count, covariance = max(seen.count, 1), seen.covariance
    missing = seen.cross[-1] / count
    shared = seen.cross[:-1].T / count - np.outer(missing, seen.mean)
    made = _variance(weight, covariance)
    wanted = made + 2 * (shared * weight).sum(axis=1) + seen.power / count - missing**2
    fitted = weight + change.weight
    factor = np.sqrt(np.maximum(wanted, 0.0) / np.maximum(_variance(fitted, covariance), 1e-30)).clip(1.0, _STRETCH)
    stretched = (factor[:, None] - 1) * fitted
    return Affine(change.weight + stretched, change.bias - stretched @ seen.mean)


def _variance(weight: Floats, covariance: Floats) -> Floats:
    return np.asarray(((weight @ covariance) * weight).sum(axis=1))
