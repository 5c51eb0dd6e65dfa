"""Set single weights of layers to zero, and solve what is left of each layer for what it made in the original.

In the order of the graph every layer is given what reaches it from the layers already done, and shall make of it what
it made in the original (``core.observed``). The smallest weights merely zeroed are the measure: a layer takes other
zeros and other weights only where they are nearer on samples that were held back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.observed import Place, observed
from onnxopt.core.pass_ import label
from onnxopt.core.seen import Seen
from onnxopt.graph.ir import Node
from onnxopt.graph.layer import Floats, layout
from onnxopt.graph.model import Model
from onnxopt.numerics.sparsity import Mask, Runs, by_splitting, by_surgery, settle, smallest

Criterion = Literal["splitting", "obs", "magnitude"]
_CHOOSE: dict[Criterion, Callable[[Floats, Floats, int | Runs], Mask]] = {"splitting": by_splitting, "obs": by_surgery}
# Added to the power of every input, as a share of it: to choose, and to solve, where held-back samples say which.
# To choose with each of those as well gained nothing from 512 samples, and a decibel from 16, for twice the time.
_CHOICE = 0.1
_DAMPINGS = (1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Thinned:
    """The share of zeros of a layer, and its squared error over its squared output on held-back samples: ``before``
    with the smallest weights merely zeroed, ``after`` as it became; None without data."""

    layer: str
    weights: int
    zeros: float
    before: float | None = None
    after: float | None = None


def quota(layer: Node, ratio: float, runs: Runs | None) -> int | Runs:
    """What shall be zero of a layer: so many weights, to the nearest, or so many of each run."""
    return runs or int(ratio * np.prod(layer.inputs[1].shape) + 0.5)


def fault(layer: Node, goes: int | Runs) -> str:
    """Why this changes nothing, or cannot be done; empty otherwise."""
    view = layout(layer)
    inputs = view.shape[view.into]
    if isinstance(goes, Runs) and inputs % goes.length:
        return f"it sums over {inputs} input channels, no multiple of {goes.length}"
    zero = unrolled.unroll(layer, layer.inputs[1].values == 0)
    return "it has as many zeros already" if zero[_smallest(layer, -1.0 * zero, goes)].all() else ""


def zero_smallest(model: Model, layer: Node, goes: int | Runs) -> Thinned:
    """Zero the smallest weights and leave the others as they are."""
    weight, bias = unrolled.read(layer)
    unrolled.write(model, layer, np.where(_smallest(layer, np.abs(weight), goes), 0.0, weight), bias)
    return Thinned(label(layer), weight.size, _zeros(layer))


def thin(
    model: Model,
    original: Model,
    layers: Sequence[tuple[Node, int | Runs]],
    criterion: Criterion,
    context: Context,
    samples: int,
) -> Iterator[Thinned]:
    """Zero weights of these layers of a model, which are in its order; of the original they have the names."""
    goes = {id(layer): quota for layer, quota in layers}
    places = [Place.whole(layer) for layer, _ in layers]
    for place, rows in observed(model, original, places, context, samples, "sparsify"):
        layer = place.layer
        weight, bias = unrolled.read(layer)
        seen = Seen(weight, bias, unrolled.has_bias(model, layer), rows)
        found = list(_candidates(layer, seen, goes[id(layer)], criterion))
        errors = [seen.error(*candidate) for candidate in found]
        best = int(np.argmin(errors))
        unrolled.write(model, layer, *found[best])
        yield Thinned(label(layer), weight.size, _zeros(layer), errors[0], errors[best])


def _candidates(layer: Node, seen: Seen, goes: int | Runs, criterion: Criterion) -> Iterator[tuple[Floats, Floats]]:
    """Weights and biases with zeros in them; the first has the smallest zeroed, and nothing else."""
    small = _smallest(layer, np.abs(seen.weight), goes)
    yield np.where(small, 0.0, seen.weight), seen.bias
    yield seen.with_bias(np.where(small, 0.0, seen.weight))
    if criterion == "magnitude" or not seen.tells:
        return
    order, gram = _order(layer), seen.damped(_CHOICE)
    wanted, mask = seen.wanted(gram), np.empty(small.shape, np.bool_)
    mask[..., order] = _CHOOSE[criterion](wanted[..., order], gram[:, order][..., order], goes)
    for damping in _DAMPINGS:
        gram = seen.damped(damping)
        yield seen.with_bias(settle(seen.wanted(gram), gram, mask))


def _zeros(layer: Node) -> float:
    return float((layer.inputs[1].values == 0).mean())


def _smallest(layer: Node, score: Floats, goes: int | Runs) -> Mask:
    mask, order = np.empty(score.shape, np.bool_), _order(layer)
    mask[..., order] = smallest(score[..., order], goes)
    return mask


def _order(layer: Node) -> npt.NDArray[np.intp]:
    """The columns of a weight with the input channels of each position in the kernel side by side."""
    view = layout(layer)
    return np.arange(view.shape[view.into] * view.shape[3]).reshape(-1, view.shape[3]).T.ravel()
