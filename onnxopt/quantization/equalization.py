"""Give every channel its share of the levels: scale channels before rounding, and undo it in the weights behind.

One tensor has one scale, set by its largest channel; a channel with a tenth of that range is rounded ten times as
coarsely. Where everything between layers is homogeneous, channel i may be multiplied by c_i in the layers that make it
and divided by c_i in those that read it; the model computes the same (Nagel et al., "Data-free quantization through
weight equalization and bias correction", 2019, for pairs of layers; here for whole streams, with ranges from data).

With r_i the largest value of channel i over the largest of its tensor, c_i = r_i^-a: a = 1 fills every channel's range,
a = 0 changes nothing. What the activations gain the weights may lose, because a row of weights has one scale too. For
every stream the exponent is taken that makes the expected noise of the layers that read it smallest:

    sum_o step_x^2 / 12 |W_o / c|^2 + |(W_o / c - rounded) c x|^2
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.core.context import Context
from onnxopt.graph import layer as layers
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.ir import Node, is_constant
from onnxopt.graph.labels import Labels
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.quantization.eligible import Sizes
from onnxopt.quantization.homogeneous import rules

_EXPONENTS = np.linspace(0.0, 1.0, 11)
_ROUNDS = 2
# A channel that is all but silent must not make the weights that read it vanish, nor the data of a few samples decide.
_LARGEST = 256.0
_SAMPLES = 128
_BATCH = 4
_LEVELS_X, _LEVELS_W = 255, 127
# Operators whose constants take up the factors of what they make.
_CARRY = ("Add", "LayerNormalization", "Max", "Mul", "Sub", "Sum")


def equalize(model: Model, context: Context, tensors: Iterable[str], sizes: Sizes) -> int:
    """Scale channels of the model in place; returns how many layers changed.

    ``tensors`` are those that are to be quantized, ``sizes`` the observed shapes by name.
    """
    coupling = Coupling(model, sizes, {}, rules)
    makers = {t.name: (n, slot) for n in model.graph.nodes for slot, t in enumerate(n.outputs) if t.name}
    places = {}
    for name in sorted(set(tensors) & set(makers)):
        node, slot = makers[name]
        for axis in range(len(sizes[name])):
            classes = coupling.output(node, axis, slot)
            if classes.any():
                places[name] = _Place(axis, classes)
    if not places:
        return 0
    ranges = _measure(model, context, places, sizes)
    used = _use(coupling.count + 1, places, ranges)
    readers = [r for n in model.graph.nodes if (r := _reader(n, coupling, places, ranges)) is not None]
    factors = _solve(coupling, used, readers)
    return _apply(model, coupling, factors)


@dataclass(frozen=True)
class _Place:
    """The channels of a tensor: their axis, and the class of each (0: must stay as it is)."""

    axis: int
    classes: Labels


@dataclass(frozen=True)
class _Channels:
    """Of a tensor, per channel: the largest magnitude, and the mean square."""

    largest: Floats
    power: Floats


@dataclass(frozen=True)
class _Reader:
    """A layer that reads a quantized tensor: ``weight`` (groups, outputs, inputs, kernel), of its inputs (groups,
    inputs) the ``classes`` and the mean square ``energy``, and the ``step`` that its input is rounded to."""

    weight: Floats
    classes: Labels
    energy: Floats
    step: float

    def noise(self, factors: Floats) -> float:
        """Expected noise over expected signal of the layer's output."""
        c = factors[self.classes][:, None, :, None]
        scaled = self.weight / c
        step = np.abs(scaled).max(axis=(2, 3), keepdims=True) / _LEVELS_W
        lost = scaled - np.rint(scaled / np.where(step, step, 1)) * step
        energy = self.energy[:, None, :, None]
        signal = float((np.square(self.weight) * energy).sum())
        noise = float((np.square(lost * c) * energy).sum()) + self.step**2 / 12 * float(np.square(scaled).sum())
        return noise / max(signal, 1e-300)


def _measure(model: Model, context: Context, places: Mapping[str, _Place], sizes: Sizes) -> dict[str, _Channels]:
    largest = {name: np.zeros(len(p.classes)) for name, p in places.items()}
    power = {name: np.zeros(len(p.classes)) for name, p in places.items()}
    rows = dict.fromkeys(places, 0)
    for values in context.activations(model, list(places), samples=_SAMPLES, batch=_BATCH):
        for name, value in values.items():
            axis = places[name].axis
            others = tuple(k for k in range(value.ndim) if k != axis)
            if value.size == 0 or value.shape[axis] != len(largest[name]):
                continue
            np.maximum(largest[name], np.maximum(value.max(axis=others), -value.min(axis=others)), out=largest[name])
            power[name] += np.square(value).sum(axis=others, dtype=np.float64)
            rows[name] += value.size // value.shape[axis]
    return {name: _Channels(largest[name], power[name] / max(rows[name], 1)) for name in places}


def _use(count: int, places: Mapping[str, _Place], ranges: Mapping[str, _Channels]) -> Floats:
    """By class: the share of its tensor's range that it uses, where it uses most."""
    used = np.zeros(count)
    for name, place in places.items():
        found = ranges[name].largest
        np.maximum.at(used, place.classes, found / max(float(found.max()), 1e-300))
    return used


def _reader(
    node: Node, coupling: Coupling, places: Mapping[str, _Place], ranges: Mapping[str, _Channels]
) -> _Reader | None:
    if node.op not in layers.LAYERS or layers.fault(node) or node.inputs[0].name not in places:
        return None
    name = node.inputs[0].name
    layout = layers.layout(node)
    weight = np.asarray(node.inputs[1].values, np.float64).reshape(layout.shape)
    found, groups = ranges[name], layout.shape[0]
    if len(found.power) != layout.inputs:
        return None
    return _Reader(
        weight if layout.out == 1 else weight.swapaxes(1, 2),
        coupling.input(node, 0, places[name].axis).reshape(groups, -1),
        found.power.reshape(groups, -1),
        float(found.largest.max()) / _LEVELS_X,
    )


def _solve(coupling: Coupling, used: Floats, readers: Sequence[_Reader]) -> Floats:
    """A factor for every class, one exponent for every block of classes; 1 for class 0."""
    factors = np.ones(coupling.count + 1)
    full = 1 / np.clip(used, 1 / _LARGEST, 1.0)
    full[0] = 1.0
    touching = {i: np.unique(r.classes) for i, r in enumerate(readers)}
    for _ in range(_ROUNDS):
        for block in coupling.blocks():
            mine = [readers[i] for i, classes in touching.items() if np.isin(classes, block).any()]
            if not mine:
                continue
            best = (np.inf, factors[block])
            for exponent in _EXPONENTS:
                factors[block] = full[block] ** exponent
                noise = sum(r.noise(factors) for r in mine)
                if noise < best[0] * (1 - 1e-6):
                    best = (noise, factors[block].copy())
            factors[block] = best[1]
    return factors


def _apply(model: Model, coupling: Coupling, factors: Floats) -> int:
    """Take the factors into weights and constants; returns how many layers changed."""
    changed = 0
    for node in model.graph.nodes:
        if not node.is_standard or not any(map(is_constant, node.inputs)):
            continue
        if node.op in layers.LAYERS:
            axis = 1 if "Conv" in node.op else -1
            before, after = factors[coupling.input(node, 0, axis)], factors[coupling.output(node, axis)]
            if np.any(before != 1) or np.any(after != 1):
                _scale_layer(model, node, before, after)
                changed += 1
        elif node.op in _CARRY:
            for slot, tensor in enumerate(node.inputs):
                if is_constant(tensor):
                    _scale_constant(model, node, slot, _field(node, slot, coupling, factors))
    return changed


def _scale_layer(model: Model, node: Node, before: Floats, after: Floats) -> None:
    layout = layers.layout(node)
    weight = layout.scale(node.inputs[1].values, after, layout.out)
    node.inputs[1] = model.constant(node.inputs[1].name, layout.scale(weight, 1 / before, layout.into))
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        _scale_constant(model, node, 2, after)


def _field(node: Node, slot: int, coupling: Coupling, factors: Floats) -> Floats:
    """What to multiply a constant input with, in its own shape."""
    shape = tuple(node.inputs[slot].shape)
    result = np.ones(shape)
    x = next((i for i, t in enumerate(node.inputs) if not is_constant(t)), None)
    for k in range(1, len(shape) + 1):
        if shape[-k] == 1:
            continue
        along = factors[coupling.output(node, -k)]
        if node.op == "Mul" and x is not None:
            along = along / factors[coupling.input(node, x, -k)]
        result *= along.reshape(-1, *(1,) * (k - 1))
    return result


def _scale_constant(model: Model, node: Node, slot: int, field: Floats) -> None:
    if np.any(field != 1):
        constant = node.inputs[slot]
        node.inputs[slot] = model.constant(constant.name, (constant.values * field).astype(constant.dtype))
