"""Make the layers behind removed channels answer as before: closed-form least squares, layer by layer.

In the order of the graph, every layer that lost inputs, or that lies behind one that did, gets new weights and a new
bias: from what reaches it in the model as cut and solved so far, it shall make what it made in the original. Where its
result is added to another, the sum of both is the target, so that each block also makes good what came before it.
(He, Zhang and Sun, Channel Pruning for Accelerating Very Deep Neural Networks, 2017.) No labels, no training.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.observed import Place, find_beside, observed
from onnxopt.core.pass_ import label
from onnxopt.core.seen import Rows, gather
from onnxopt.graph.ir import Node, reads
from onnxopt.graph.layer import Floats, layout
from onnxopt.graph.model import Model
from onnxopt.numerics.least_squares import Affine, Moments, fit

_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# The most that an output is stretched by.
_STRETCH = 2.0


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
        _solve(model, place, rows, added, spread=spread and not find_beside(model, place, shapes))
        for place, rows in seen
    ]


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
