"""How much every class of channels matters, by one of several criteria; the higher, the more.

    l1, l2       norm of the weights that make a channel (Li et al., Pruning Filters for Efficient ConvNets, 2017)
    bn-gamma     |scale| of the BatchNormalization that it passes (Liu et al., Network Slimming, 2017)
    fpgm         sum of the distances of its weights to those of all other channels of the layer, so that what others
                 can stand in for goes first (He et al., Filter Pruning via Geometric Median, 2019)
    activation   mean |x| of what reaches the layers that sum over it (Molchanov et al., Pruning Convolutional Neural
                 Networks for Resource Efficient Inference, 2017)
    taylor       how much the outputs change with it, to first order (``pruning.taylor``)
    random       chance: what any other must be better than

All but taylor and random are judged layer by layer, with mean 1 over the channels of each (of a BatchNormalization, of
a tensor that is summed over), and a class scores the mean over all the channels that it has in all of these: so it is
judged whole, however many layers make it. Taylor compares over the model as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from onnxopt.core.context import Context
from onnxopt.errors import PassError
from onnxopt.graph import recurrent
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.ir import is_constant
from onnxopt.graph.labels import Labels
from onnxopt.graph.layer import Floats, layout, weight
from onnxopt.graph.model import Model
from onnxopt.pruning import taylor
from onnxopt.pruning.channels import Producer

Criterion = Literal["obs", "l1", "l2", "bn-gamma", "fpgm", "activation", "taylor", "random"]

# Distances are worked out for so many pairs at a time.
_PAIRS = 2**22


def score(
    criterion: Criterion,
    model: Model,
    coupling: Coupling,
    makers: Sequence[Producer],
    context: Context,
    samples: int,
) -> Floats:
    """By class, (coupling.count + 1,); NaN for class 0, for what no layer makes, and where the criterion says nothing.

    Only activation and taylor run the model, on at most ``samples`` samples (see ``taylor.passes`` for how many of
    them it takes). Raises PassError where the model has nothing that the criterion looks at; ValueError for obs, which
    judges what is left again and again while channels go (``pruning.selection``).
    """
    if criterion == "random":
        found = context.rng().random(coupling.count + 1)
    elif criterion == "taylor":
        found = taylor.sensitivities(model, coupling, made(makers, coupling), context, samples)
    elif criterion == "activation":
        found = _mean(_activations(model, coupling, context, samples), coupling.count)
    elif criterion == "bn-gamma":
        found = _mean(_gammas(model, coupling), coupling.count)
    elif criterion == "fpgm":
        found = _mean(((m.classes, _distances(_filters(m))) for m in makers), coupling.count)
    elif criterion in ("l1", "l2"):
        order = int(criterion[1])
        norms = ((m.classes, np.linalg.norm(_filters(m), order, axis=1)) for m in makers)
        found = _mean(norms, coupling.count)
    else:
        raise ValueError(f"{criterion} has no score that is known before anything is removed")
    unknown = np.ones(coupling.count + 1, bool)
    unknown[made(makers, coupling)] = False
    return np.where(unknown, np.nan, found)


def made(makers: Sequence[Producer], coupling: Coupling) -> Labels:
    """The classes that some layer makes, without class 0."""
    found = np.zeros(coupling.count + 1, bool)
    for maker in makers:
        found[maker.classes] = True
    return np.flatnonzero(found[1:]) + 1


def _mean(measured: Iterable[tuple[Labels, Floats]], count: int) -> Floats:
    """By class: the mean over all its channels everywhere, each place brought to mean 1; NaN where there is none.

    Places are given as (the class of each channel, its measure).
    """
    total, seen = np.zeros(count + 1), np.zeros(count + 1)
    for classes, values in measured:
        np.add.at(total, classes, values / max(float(values.mean()), 1e-30))
        np.add.at(seen, classes, 1)
    return np.where(seen > 0, total / np.maximum(seen, 1), np.nan)


def _filters(maker: Producer) -> Floats:
    """The weights behind each channel: (outputs, inputs x kernel); of a hidden unit, of all gates and directions."""
    if recurrent.is_recurrent(maker.layer):
        return recurrent.filters(maker.layer)
    view = layout(maker.layer)
    whole = np.moveaxis(weight(maker.layer).reshape(view.shape), view.out, 1)
    return np.asarray(whole.reshape(view.outputs, -1), np.float64)


def _distances(filters: Floats) -> Floats:
    """The sum of each row's Euclidean distances to all others."""
    power = np.square(filters).sum(axis=1)
    found = np.empty(len(filters))
    step = max(1, _PAIRS // len(filters))
    for start in range(0, len(filters), step):
        part = slice(start, start + step)
        square = power[part, None] + power - 2 * filters[part] @ filters.T
        found[part] = np.sqrt(np.maximum(square, 0)).sum(axis=1)
    return found


def _gammas(model: Model, coupling: Coupling) -> list[tuple[Labels, Floats]]:
    norms = [n for n in model.graph.nodes if n.op == "BatchNormalization" and n.is_standard]
    known = [n for n in norms if is_constant(n.inputs[1])]
    if not known:
        raise PassError(
            "prune:criterion=bn-gamma looks at BatchNormalization, and the model has none (it may be folded into the "
            "layers before it: then give the model as it was, with fold-bn after prune, if at all); or choose another "
            "criterion"
        )
    return [(coupling.input(n, 0, 1), np.abs(n.inputs[1].values.astype(np.float64))) for n in known]


def _activations(model: Model, coupling: Coupling, context: Context, samples: int) -> Iterator[tuple[Labels, Floats]]:
    """Mean |x| along the axes that are summed over, of each tensor once; those in bodies cannot be watched."""
    outer = {id(n) for n in model.graph.nodes}
    places = {
        (node.inputs[slot].name, axis): coupling.input(node, slot, axis)
        for node, slot, axis in coupling.contractions
        if id(node) in outer and not is_constant(node.inputs[slot])
    }
    places = {place: classes for place, classes in places.items() if classes.any()}
    total = {place: np.zeros(len(classes)) for place, classes in places.items()}
    count = dict.fromkeys(places, 0.0)
    names = sorted({name for name, _ in places})
    for values in context.activations(model, names, samples) if names else ():
        for name, axis in places:
            x = np.moveaxis(np.abs(values[name]), axis, 0).reshape(values[name].shape[axis], -1)
            total[name, axis] += x.sum(axis=1, where=np.isfinite(x), dtype=np.float64)
            count[name, axis] += x.shape[1]
    for place, classes in places.items():
        yield classes, total[place] / max(count[place], 1.0)
