"""Round a model's weights to where its layers' outputs, on calibration data, come nearest to those of the float model.

In the order of the graph, every layer is solved on what reaches it in integers, the layers before it rounded already,
towards what it makes in floats: its weights are rounded one after the other, each to make good for those before it, and
its bias makes the mean of each channel what it was, behind the Relu or Clip that follows: noise that a Relu halves has
a mean, and means outlive every average that the net takes. Samples that were held back decide how far to trust the
moments of the others, and whether a layer is better off than with weights rounded to nearest. Nothing is trained, no
labels are used. Letting real weights drift towards the target before they are rounded was tried, as were clipped
weights and sums as targets: none gained a tenth of a decibel over all, the first lost two on one net.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.pass_ import Skip, label
from onnxopt.core.stream import Stream, feeds
from onnxopt.graph.ir import Node
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.numerics.patches import sample_positions
from onnxopt.numerics.qparams import INT8
from onnxopt.numerics.rounding import round_weights
from onnxopt.quantization.eligible import clamp_limits
from onnxopt.quantization.placement import Placement, Unit
from onnxopt.quantization.qdq import NO_LIMITS, constant_behind, missing_channels
from onnxopt.quantization.saturation import pairs, relieve, unpaired
from onnxopt.quantization.weights import LayerWeights

Mask = npt.NDArray[np.bool_]

# Added to the variance of every input, relative to the mean of all.
_DAMPINGS = (1e-3, 1e-2, 1e-1)
# Of large pictures few are kept at once.
_BATCH = 8
# Of this many samples one is held back.
_HELD = 5
# Numbers in the rows that are worked on at once.
_CHUNK = 2**21
# Of an output's error on samples held back: what is kept must leave less.
_WORTH = 0.99
_NEWTON_STEPS = 4
# A channel that a clamp shuts more often than this keeps the bias that is best without the clamp.
_LEAST_OPEN = 0.02


@dataclass(frozen=True)
class Learned:
    """New weights; and squared error over squared output on samples held back, rounded to nearest and with these."""

    weights: LayerWeights
    before: float
    after: float


def learn(
    plain: Model,
    rounded: Model,
    placement: Placement,
    weights: Mapping[str, LayerWeights],
    context: Context,
    samples: int,
    *,
    safe: bool = False,
) -> tuple[dict[str, Learned], list[Skip]]:
    """Better weights for the layers in ``weights``, by label, where there are any; and the layers that were not tried.

    ``placement`` has the nodes of ``plain``. ``rounded`` is the same model with rounded activations and float weights;
    it is changed, and has the new weights in the end. ``safe``: no pair of products overflows 16 bits.
    """
    batches = feeds(context, samples, _BATCH)
    then = Stream(plain, batches, placement.sizes, context.threads)
    # Optimized, the runtime would round the float weights as it likes.
    now = Stream(rounded, batches, context.shapes(rounded), context.threads, optimize=False)
    copies = {label(n): n for n in rounded.graph.nodes}
    few = context.dataset.count < _HELD
    found, skips = dict[str, Learned](), list[Skip]()
    for unit in context.track([u for u in placement.units if label(u.node) in weights], "round weights"):
        layer, name = unit.node, label(unit.node)
        copy, current = copies[name], weights[name]
        free = copy.op != "MatMul" or constant_behind(copy) is not None
        current = current if free else replace(current, bias=np.zeros_like(current.bias))
        if why := unrolled.fault(layer):
            skips.append(Skip(name, f"its weights are rounded to nearest: it {why}"))
        else:
            x, y = copy.inputs[0].name, layer.outputs[0].name
            share = min(now.rest(x), then.rest(layer.inputs[0].name))
            limit = max(1, round(unrolled.enough_rows(layer) / (share * len(batches))))
            both = ((a, b) for (a,), (b,) in zip(now.read([x], share), then.read([y], share), strict=True))
            observed = _Observed.of(unit, _rows(layer, both, limit, few, context.rng()))
            added = missing_channels(unit, placement, plain.opset) if safe else None
            if (learned := _solve(layer, current, observed, free, added)) is not None:
                found[name], current = learned, learned.weights
        unrolled.write(rounded, copy, *_folded(layer, current))
    return found, skips


def _rows(
    layer: Node, both: Iterable[tuple[Array, Array]], limit: int, few: bool, rng: np.random.Generator
) -> Iterator[tuple[Array, Array, Mask]]:
    """At most ``limit`` rows of inputs and outputs of each batch, and which to hold back: those of every fifth sample.

    With ``few`` samples it is every fifth row. Rows are (groups, n, inputs) and (groups, n, outputs).
    """
    groups, outputs, inputs = unrolled.read(layer)[0].shape
    size, sample = 1 + _CHUNK // (groups * inputs), 0
    for x, y in both:
        rows, targets = unrolled.Rows(layer, x), unrolled.targets(layer, y)
        chosen = sample_positions(rows.count, limit, rng)
        of = np.arange(len(chosen)) if few else sample + chosen * len(x) // rows.count
        sample += len(x)
        for start in range(0, len(chosen), size):
            at = chosen[start : start + size]
            into, out = rows.at(at), targets[at]
            fit = np.isfinite(into).all(axis=1) & np.isfinite(out).all(axis=1)
            parts = (
                np.ascontiguousarray(t[fit].reshape(-1, groups, n).swapaxes(0, 1))
                for t, n in ((into, inputs), (out, outputs))
            )
            yield *parts, of[start : start + size][fit] % _HELD == _HELD - 1


@dataclass(frozen=True)
class _Observed:
    """What reached a layer and what it should make of it, by group.

    ``gram`` (groups, inputs + 1, inputs + 1) sums z z^T with z = [x; 1], ``total`` (groups, outputs) the outputs.
    ``train`` and ``held`` are rows, (groups, n, inputs) and (groups, n, outputs), a part of those summed and those
    held back. ``limits`` clamp the output.
    """

    gram: Floats
    total: Floats
    train: tuple[Array, Array]
    held: tuple[Array, Array]
    limits: tuple[float, float]

    @classmethod
    def of(cls, unit: Unit, rows: Iterable[tuple[Array, Array, Mask]]) -> _Observed:
        groups, outputs, inputs = unrolled.read(unit.node)[0].shape
        gram, total = np.zeros((groups, inputs + 1, inputs + 1)), np.zeros((groups, outputs))
        empty = np.zeros((groups, 0, inputs), np.float32), np.zeros((groups, 0, outputs), np.float32)
        train, held = [empty], [empty]
        for x, y, is_held in rows:
            held.append((x[:, is_held], y[:, is_held]))
            x, y = x[:, ~is_held], y[:, ~is_held]
            train.append((x[:, :: _HELD - 1], y[:, :: _HELD - 1]))
            z = np.concatenate((x, np.ones((*x.shape[:2], 1))), axis=2, dtype=np.float64)
            gram += z.swapaxes(1, 2) @ z
            total += y.sum(axis=1, dtype=np.float64)
        limits = NO_LIMITS if unit.clamp is None else clamp_limits(unit.clamp)
        (a, b), (c, d) = (
            (np.concatenate(parts, axis=1) for parts in zip(*rows, strict=True)) for rows in (train, held)
        )
        return cls(gram, total, (a, b), (c, d), limits)

    @property
    def count(self) -> float:
        return max(float(self.gram[0, -1, -1]), 1.0)

    def spread(self, free: bool) -> Floats:
        """The second moments of the inputs; those of what they differ from their means by where a bias is ``free``."""
        mean = self.gram[:, -1:, :-1]
        return self.gram[:, :-1, :-1] - (mean.swapaxes(1, 2) @ mean / self.count if free else 0.0)

    def bias(self, weight: Floats) -> Floats:
        """With these weights, the bias that makes the outputs right on average, clamped if they are: Newton's steps."""
        bias = (self.total - (weight @ self.gram[:, :-1, -1:])[..., 0]) / self.count
        if self.limits == NO_LIMITS or not self.train[0].shape[1]:
            return np.asarray(bias)
        (x, wanted), (lo, hi) = self.train, self.limits
        product, wanted = x @ weight.astype(np.float32).swapaxes(1, 2), wanted.clip(lo, hi)
        for _ in range(_NEWTON_STEPS):
            y = product + bias[:, None].astype(np.float32)
            is_open = ((y > lo) & (y < hi)).mean(axis=1)
            missing = (wanted - y.clip(lo, hi)).mean(axis=1, dtype=np.float64)
            bias = bias + np.where(is_open > _LEAST_OPEN, missing / np.maximum(is_open, _LEAST_OPEN), 0.0)
        return np.asarray(bias)

    def error(self, weight: Floats, bias: Floats) -> Floats:
        """Squared error of each output, clamped, on what was held back: (groups, outputs)."""
        x, wanted = self.held
        y = x @ weight.astype(np.float32).swapaxes(1, 2) + bias[:, None].astype(np.float32)
        return np.asarray(np.square(y.clip(*self.limits) - wanted.clip(*self.limits)).sum(axis=1, dtype=np.float64))

    @property
    def power(self) -> float:
        """The squared outputs, clamped, of what was held back."""
        return float(np.square(self.held[1].clip(*self.limits)).sum(dtype=np.float64))


def _solve(layer: Node, current: LayerWeights, observed: _Observed, free: bool, added: int | None) -> Learned | None:
    """Better weights and bias for a layer, if there are any; ``added`` as for ``pairs``, None where nothing overflows.

    A bias that is not ``free`` stays as it is.
    """
    exact, _ = unrolled.read(layer)
    groups, outputs, inputs = exact.shape
    nearest, bias = _folded(layer, current)
    before = least = observed.error(nearest, bias)
    gram = observed.spread(free)
    mean = np.trace(gram, axis1=1, axis2=2)[:, None, None] / inputs
    damping = np.where(mean > 0, mean, 1.0) * np.eye(inputs)
    scale = np.broadcast_to(current.params.scale, groups * outputs).reshape(groups, outputs, 1).astype(np.float64)
    best, steps = bias, unrolled.unroll(layer, current.steps)
    for share in _DAMPINGS:
        tried = unrolled.roll(layer, round_weights(exact / scale, gram + share * damping)).astype(INT8.dtype)
        if added is not None:
            tried = unpaired(layer, relieve(pairs(layer, tried, added)), tried.shape, added)
        found = unrolled.unroll(layer, tried)
        shift = observed.bias(found * scale) if free else bias
        error = observed.error(found * scale, shift)
        better = error < np.minimum(least, before * _WORTH)
        least, best = np.where(better, error, least), np.where(better, shift, best)
        steps = np.where(better[..., None], found, steps)
    if not (least < before).any():
        return None
    new = replace(current, steps=unrolled.roll(layer, steps), bias=best.reshape(-1))
    power = max(observed.power, 1e-300)
    return Learned(new, float(before.sum()) / power, float(least.sum()) / power)


def _folded(layer: Node, weights: LayerWeights) -> tuple[Floats, Floats]:
    """Weights and bias as real numbers: (groups, outputs, inputs) and (groups, outputs)."""
    weight = unrolled.unroll(layer, weights.values.astype(np.float64))
    return weight, weights.bias.reshape(weight.shape[:2])
