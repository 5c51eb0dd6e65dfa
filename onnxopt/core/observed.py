"""What reaches a layer of a changed model, and what it shall make of it: what it made in the original."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.seen import Rows
from onnxopt.core.stream import Stream, feeds, modest_batch
from onnxopt.graph.ir import Node, is_constant
from onnxopt.graph.layer import layout
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.numerics.patches import sample_positions

Mask = npt.NDArray[np.bool_]


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
        beside = find_beside(model, place, shapes)
        if beside and now.passes(beside, [p.layer for p in places[i:]]):
            beside = ""
        pairs = _pairs(place, beside, now, then, share)
        limit = max(1, round(place.enough / (share * len(batches))))
        yield place, _rows(place.layer, pairs, limit, batch, few, context.rng())


def find_beside(model: Model, place: Place, shapes: Mapping[str, tuple[int, ...]]) -> str:
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
