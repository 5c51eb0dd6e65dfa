"""Make the layers behind removed channels answer as before: closed-form least squares, layer by layer.

A layer that lost inputs gets new weights and a new bias, so that from what reaches it in the model as cut and repaired
so far it makes, as nearly as it can, what it made in the original model. (Reconstruction from the original's
activations: He, Zhang and Sun, Channel Pruning for Accelerating Very Deep Neural Networks, 2017.) No labels, no
training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.pass_ import label
from onnxopt.core.stream import Stream, peak_bytes
from onnxopt.graph.ir import Node
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.numerics.least_squares import Moments, fit
from onnxopt.numerics.patches import sample_positions

Mask = npt.NDArray[np.bool_]

ROWS = 20_000
_MEMORY = 2**28
_RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Place:
    """A layer to repair, and which of its outputs in the original model it still has."""

    layer: Node
    outputs: Mask


@dataclass(frozen=True)
class Repaired:
    """Squared error over the squared target on held-back samples, before and after; ``ridge`` that did best on them."""

    layer: str
    before: float
    after: float
    ridge: float
    rows: int


def repair(model: Model, original: Model, places: Sequence[Place], context: Context, samples: int) -> list[Repaired]:
    """Solve every place in the order of the graph; the model is changed, the original is not.

    Fewer than ``samples`` samples are used where more of their activations than 256 MiB would have to be kept.
    """
    model.tidy()
    order = {id(node): i for i, node in enumerate(model.graph.nodes)}
    places = sorted(places, key=lambda p: order[id(p.layer)])
    each = peak_bytes(original, [p.layer.outputs[0].name for p in places], context.shapes(original))
    feeds = list(context.dataset.batches(context.batch, stop=min(samples, max(8, _MEMORY // max(each, 1)))))
    now, then = Stream(model, feeds, context.threads), Stream(original, feeds, context.threads)
    found = []
    for place in context.track(places, "repair"):
        target = then.advance(place.layer.outputs[0].name)
        reached = now.advance(place.layer.inputs[0].name)
        found.append(_solve(model, place, _rows(place, reached, target, context.rng())))
    return found


def _rows(
    place: Place, reached: Sequence[Array], target: Sequence[Array], rng: np.random.Generator
) -> Iterator[tuple[Floats, Floats, Mask]]:
    """Rows of inputs and of targets, batch by batch, and which of them are held back: those of every fifth sample."""
    limit = max(1, ROWS // len(reached))
    few = sum(len(x) for x in reached) < 5
    sample = 0
    for x, y in zip(reached, target, strict=True):
        all_rows = unrolled.targets(place.layer, y)
        at = sample_positions(len(all_rows), limit, rng)
        of = np.arange(len(at)) if few else sample + at * len(x) // len(all_rows)
        sample += len(x)
        rows = unrolled.rows(place.layer, x, y.shape, at).astype(np.float64)
        yield rows, all_rows[at][:, place.outputs].astype(np.float64), of % 5 == 4


def _solve(model: Model, place: Place, batches: Iterator[tuple[Floats, Floats, Mask]]) -> Repaired:
    """Solve for the change of weights and bias, group by group: so a large ridge leaves the layer as it is."""
    weight, bias = unrolled.read(place.layer)
    groups, outputs, inputs = weight.shape
    train, held = ([Moments.empty(inputs, outputs) for _ in range(groups)] for _ in range(2))
    power = 0.0
    for x, t, is_held in batches:
        power += float(np.square(t[is_held]).sum())
        x, t = x.reshape(-1, groups, inputs), t.reshape(-1, groups, outputs)
        for g in range(groups):
            missing = t[:, g] - x[:, g] @ weight[g].T - bias[g]
            train[g].add(x[~is_held, g], missing[~is_held])
            held[g].add(x[is_held, g], missing[is_held])
    before, after, best = 0.0, 0.0, 0.0
    for g in range(groups):
        change, ridge = fit(train[g], held[g], _RIDGES)
        unchanged, changed = float(held[g].power.sum()), held[g].error(change)
        if changed < unchanged:
            weight[g] += change.weight
            bias[g] += change.bias
            best = max(best, ridge)
        before, after = before + unchanged, after + min(unchanged, changed)
    if after < before:
        unrolled.write(model, place.layer, weight, bias)
    scale, rows = max(power, 1e-30), train[0].count + held[0].count
    return Repaired(label(place.layer), before / scale, after / scale, best, rows)
