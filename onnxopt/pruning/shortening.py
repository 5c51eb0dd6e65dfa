"""Drop whole residual branches where that costs less than to cut channels.

What channels cost is known from the way that leads to the budget through them alone: error by share of the cost. Its
slope at the end is the price of what is still to be saved. A branch that costs less goes; then less is to be saved, and
the price is that of an earlier place on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from onnxopt.core.context import Context
from onnxopt.core.pass_ import label
from onnxopt.graph.cost import cost
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.pruning.budget import Quantity
from onnxopt.pruning.depth import Branch, branches, drop, means, without
from onnxopt.pruning.probe import Probe


class Dropped(NamedTuple):
    """The Add that a branch led to, the layers that went, and the tensor that is another from there on."""

    add: str
    layers: tuple[str, ...]
    tensor: str


def shorten(
    model: Model,
    context: Context,
    way: Sequence[tuple[float, float]],
    limit: float,
    quantity: Quantity,
    samples: int,
    may_go: Callable[[Branch], bool],
) -> list[Dropped]:
    """Drop one branch after the other, the cheapest for what it saves first, until channels are cheaper.

    ``way`` is (share of the cost left, error) by step, and ``limit`` the share that may be left. Errors are those that
    a ``Probe`` sees: without outputs in floats it sees none, and nothing goes.
    """
    if not any(np.issubdtype(t.dtype, np.floating) for t in model.outputs):
        return []
    shapes = context.shapes(model)
    whole = max(_size(model, shapes, quantity), 1e-30)
    probe = Probe(model, context, samples)
    dropped: list[Dropped] = []
    rates: dict[str, float] = {}
    left, lost = 1.0, 0.0

    def rate(branch: Branch, mean: Array) -> float:
        """Error for what goes of what is still to be saved."""
        other = without(model, branch, mean)
        saved = min(left - _size(other, shapes, quantity) / whole, left - limit)
        return max(probe.of(other) - lost, 0.0) / saved if saved > 0 else np.inf

    while left > limit:
        found = [b for b in branches(model, shapes) if may_go(b)]
        averages = means(model, found, context, samples)
        # An error hardly falls when other branches go, so those that were dearer need not be measured again.
        best, least = -1, _price(way, limit + 1 - left)
        order = sorted(range(len(found)), key=lambda i: rates.get(_name(found[i]), 0.0))
        for i in context.track(order, "layers"):
            if rates.get(_name(found[i]), 0.0) >= least:
                continue
            rates[_name(found[i])] = now = rate(found[i], averages[i])
            if now < least:
                best, least = i, now
        if best < 0:
            break
        drop(model, found[best], averages[best])
        dropped.append(Dropped(label(found[best].add), found[best].layers, _name(found[best])))
        model.tidy()
        left, lost = _size(model, shapes, quantity) / whole, probe.of(model)
    return dropped


def _name(branch: Branch) -> str:
    return str(branch.add.outputs[0].name)


def _price(way: Sequence[tuple[float, float]], share: float) -> float:
    """The most error for a share of the cost on the way, until so much is left."""
    costs, errors = np.array(way, np.float64).reshape(-1, 2).T
    saved, rise = -np.diff(costs), np.diff(errors)
    taken = (costs[:-1] > share) & (saved > 0)
    return float((rise[taken] / saved[taken]).max(initial=0.0))


def _size(model: Model, shapes: Mapping[str, tuple[int, ...]], quantity: Quantity) -> float:
    """What a model costs. For the time of a model the MACs stand, of which only the share counts."""
    found = cost(model, shapes)
    match quantity:
        case "params":
            return found.total.parameters
        case "size":
            return found.total.weight_bytes
        case _:
            return sum(node.macs or 0 for node in found.nodes)
