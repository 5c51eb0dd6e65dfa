"""Give every channel its share of the levels: scale channels before rounding, and undo it in the weights behind.

One tensor has one scale, set by its largest channel; a channel with a tenth of that size is rounded ten times as
coarsely. Where everything between layers is homogeneous, channel i may be multiplied by c_i in the layers that make it
and divided by c_i in those that read it; the model computes the same (Nagel et al., "Data-free quantization through
weight equalization and bias correction", 2019, for pairs of layers; Xiao et al., "SmoothQuant", 2023, behind a
normalization; here for whole streams, with sizes from data).

With s_i the size of channel i over the largest of its tensor, c_i = s_i^-a: a = 1 makes all channels equally large,
a = 0 changes nothing. What the activations gain the weights may lose, because a row of weights has one scale too. For
every stream the exponent is taken that makes the expected noise of the layers that read it smallest:

    sum_o step_x^2 / 12 |W_o / c|^2 + |(W_o / c - rounded) c x|^2

Sizes are 8th roots of mean 8th powers, (E x^8)^(1/8). The range of least squared error is about 2.3 of them for normal
and for Laplacian values alike, while the largest value says little of it: were the largest values made equal, each
channel would bring its own outliers to the end of the range, and none could be clipped any more.
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
from onnxopt.quantization.eligible import Sizes, clamp_limits
from onnxopt.quantization.homogeneous import CARRY, rules

_EXPONENTS = np.linspace(0.0, 1.0, 6)
_ROUNDS = 2
# More gains little, and a channel that is all but silent on a few samples need not be so on others.
_LARGEST = 4.0
# What a Clip cuts off above must not be reached by other samples either: so much of the way there stays free.
_ROOM = 4.0
_SAMPLES = 128
_BATCH = 4
_LEVELS_X, _LEVELS_W = 255, 127
# Of the range of least squared error, for 256 levels, to the 8th root of the mean 8th power.
_WIDTH = 2.3


def equalize(model: Model, context: Context, tensors: Iterable[str], sizes: Sizes) -> int:
    """Scale channels of the model in place; returns how many layers changed.

    ``tensors`` are those that are to be quantized, ``sizes`` the observed shapes by name.
    """
    coupling = Coupling(model, sizes, {}, rules)
    places = _places(model, coupling, tensors, sizes)
    if not places:
        return 0
    found = _measure(model, context, places)
    readers = [r for n in model.graph.nodes if (r := _reader(n, coupling, places, found)) is not None]
    return scale(model, coupling, _solve(coupling, _largest(coupling.count + 1, places, found), readers))


def scale(model: Model, coupling: Coupling, factors: Floats) -> int:
    """Multiply channels by ``factors``, one for each class of ``coupling``, by changing weights and constants alone.

    Factors are positive, 1 for class 0. ``coupling`` is of this model, under the rules of ``homogeneous``. Returns how
    many layers changed. The model computes the same up to rounding, as long as factors are 1 or more where a Clip has
    an upper bound, and do not lift any value to it.
    """
    changed = 0
    for node in model.graph.nodes:
        if not node.is_standard or not any(map(is_constant, node.inputs)):
            continue
        if node.op in layers.LAYERS:
            axis = 1 if "Conv" in node.op else -1
            before, after = factors[coupling.input(node, 0, axis)], factors[coupling.output(node, axis)]
            if layers.fault(node) == "" and (np.any(before != 1) or np.any(after != 1)):
                _scale_layer(model, node, before, after)
                changed += 1
        elif node.op in CARRY:
            for slot, tensor in enumerate(node.inputs):
                if is_constant(tensor):
                    _scale_constant(model, node, slot, _field(node, slot, coupling, factors))
    return changed


@dataclass(frozen=True)
class _Place:
    """The channels of a tensor: their axis, the class of each (0: must stay as it is), what a Clip lets through."""

    axis: int
    classes: Labels
    bound: float


@dataclass(frozen=True)
class _Channels:
    """Of a tensor, per channel: the largest magnitude, the mean square, the mean 8th power."""

    largest: Floats
    square: Floats
    eighth: Floats

    def step(self, factors: Floats) -> float:
        """About what the scaled tensor is rounded to."""
        widest = float((factors * self.largest).max())
        usual = _WIDTH * float(np.power(np.mean(factors**8 * self.eighth), 1 / 8))
        return min(widest, usual) / _LEVELS_X


@dataclass(frozen=True)
class _Reader:
    """A layer that reads a quantized tensor: ``weight`` (groups, outputs, inputs, kernel), the ``classes`` (groups,
    inputs) of its inputs, and what is known of them."""

    weight: Floats
    classes: Labels
    source: _Channels

    def noise(self, factors: Floats) -> float:
        """Expected noise over expected signal of the layer's output."""
        c = factors[self.classes]
        scaled = self.weight / c[:, None, :, None]
        step = np.abs(scaled).max(axis=(2, 3), keepdims=True) / _LEVELS_W
        lost = scaled - np.rint(scaled / np.where(step, step, 1)) * step
        energy = self.source.square.reshape(c.shape)
        signal = _energy(self.weight, energy)
        noise = _energy(lost, energy * c**2) + self.source.step(c.reshape(-1)) ** 2 / 12 * float(
            np.square(scaled).sum()
        )
        return noise / max(signal, 1e-300)


def _energy(weight: Floats, energy: Floats) -> float:
    return float(np.einsum("goik,goik,gi->", weight, weight, energy))


def _places(model: Model, coupling: Coupling, tensors: Iterable[str], sizes: Sizes) -> dict[str, _Place]:
    """Where to measure: the quantized tensors with channels that may be scaled, and whatever a Clip bounds."""
    makers = {t.name: (n, slot) for n in model.graph.nodes for slot, t in enumerate(n.outputs) if t.name}
    clips = {n.outputs[0].name: clamp_limits(n)[1] for n in model.graph.nodes if n.op == "Clip" and n.is_standard}
    places = {}
    for name in sorted({*tensors, *clips} & set(makers)):
        node, slot = makers[name]
        for axis in range(len(sizes.get(name, ()))):
            classes = coupling.output(node, axis, slot)
            if classes.any():
                places[name] = _Place(axis, classes, clips.get(name, np.inf))
    return places


def _measure(model: Model, context: Context, places: Mapping[str, _Place]) -> dict[str, _Channels]:
    found = {name: [np.zeros(len(p.classes)) for _ in range(3)] for name, p in places.items()}
    rows = dict.fromkeys(places, 0)
    for values in context.activations(model, list(places), samples=_SAMPLES, batch=_BATCH):
        for name, value in values.items():
            axis, (largest, square, eighth) = places[name].axis, found[name]
            others = tuple(k for k in range(value.ndim) if k != axis)
            if value.size == 0 or value.shape[axis] != len(largest):
                continue
            np.maximum(largest, np.maximum(value.max(axis=others), -value.min(axis=others)), out=largest)
            squares = np.square(value, dtype=np.float64)
            square += squares.sum(axis=others)
            eighth += np.square(np.square(squares)).sum(axis=others)
            rows[name] += value.size // value.shape[axis]
    return {n: _Channels(largest, *(p / max(rows[n], 1) for p in powers)) for n, (largest, *powers) in found.items()}


def _largest(count: int, places: Mapping[str, _Place], found: Mapping[str, _Channels]) -> Floats:
    """By class: the factor that makes it as large as the largest channel of its tensor; of several, the smallest.

    Channels without a value other than zero, and class 0, have the factor 1.
    """
    share = np.zeros(count)
    for name, place in places.items():
        size = found[name].eighth ** (1 / 8)
        size = np.maximum(size / max(float(size.max()), 1e-300), _ROOM * found[name].largest / place.bound)
        np.maximum.at(share, place.classes, size)
    share[0] = 1.0
    return 1 / np.clip(np.where(share, share, 1.0), 1 / _LARGEST, 1.0)


def _reader(
    node: Node, coupling: Coupling, places: Mapping[str, _Place], found: Mapping[str, _Channels]
) -> _Reader | None:
    """The layer that a node is, if it reads a tensor whose channels are known."""
    if node.op not in layers.LAYERS or not node.is_standard or layers.fault(node):
        return None
    source, layout, axis = node.inputs[0], layers.layout(node), 1 if "Conv" in node.op else -1
    if source.name not in places or places[source.name].axis != range(coupling.rank(source))[axis]:
        return None
    weight = np.asarray(node.inputs[1].values, np.float64).reshape(layout.shape)
    return _Reader(
        weight if layout.out == 1 else weight.swapaxes(1, 2),
        coupling.input(node, 0, axis).reshape(layout.shape[0], -1),
        found[source.name],
    )


def _solve(coupling: Coupling, full: Floats, readers: Sequence[_Reader]) -> Floats:
    """A factor for every class, ``full`` to one exponent for every block of classes."""
    factors = np.ones(coupling.count + 1)
    touching = [np.unique(r.classes) for r in readers]
    for _ in range(_ROUNDS):
        for block in coupling.blocks():
            mine = [r for r, classes in zip(readers, touching, strict=True) if np.isin(block, classes).any()]
            if not mine or np.all(full[block] == 1):
                continue
            best = (np.inf, factors[block])
            for exponent in _EXPONENTS:
                factors[block] = full[block] ** exponent
                noise = sum(r.noise(factors) for r in mine)
                if noise < best[0] * (1 - 1e-6):
                    best = (noise, factors[block].copy())
            factors[block] = best[1]
    return factors


def _scale_layer(model: Model, node: Node, before: Floats, after: Floats) -> None:
    layout = layers.layout(node)
    weight = layout.scale(node.inputs[1].values, after, layout.out)
    node.inputs[1] = model.constant(node.inputs[1].name, layout.scale(weight, 1 / before, layout.into))
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        _scale_constant(model, node, 2, after)


def _field(node: Node, slot: int, coupling: Coupling, factors: Floats) -> Floats:
    """What to multiply a constant input with, in its own shape. Where it is stretched the factor is 1."""
    shape = tuple(node.inputs[slot].shape)
    result = np.ones(shape)
    x = next((i for i, t in enumerate(node.inputs) if not is_constant(t)), None)
    for k in range(1, len(shape) + 1):
        along = factors[coupling.output(node, -k)]
        if node.op == "Mul" and x is not None:
            along = along / factors[coupling.input(node, x, -k)]
        if len(along) == shape[-k]:
            result *= along.reshape(-1, *(1,) * (k - 1))
    return result


def _scale_constant(model: Model, node: Node, slot: int, field: Floats) -> None:
    if np.any(field != 1):
        constant = node.inputs[slot]
        node.inputs[slot] = model.constant(constant.name, (constant.values * field).astype(constant.dtype))
