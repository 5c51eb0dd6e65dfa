"""Round a model's weights to where its layers' outputs, on calibration data, come nearest to those of the float model.

In the order of the graph, every layer is solved on what reaches it in integers, the layers before it rounded already,
towards what it makes in floats: its weights are rounded one after the other, each to make good for those before it, and
its bias makes the mean of each channel what it was, behind the Relu or Clip that follows: noise that a Relu halves has
a mean, and means outlive every average that the net takes. Samples that were held back decide channel by channel how
far to trust the moments of the others; no training, no labels. Letting real weights drift towards the target before
they are rounded was tried, as were clipped weights and sums of branches as targets: over all none gained a tenth of a
decibel, and the first lost two on one net.
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
# Twice as many gained nothing.
_ROWS = 20_000
# Of large pictures few are kept at once.
_BATCH = 8
# Of this many samples one is held back.
_HELD = 5
# Numbers in the rows that are worked on at once.
_CHUNK = 2**21
_NEWTON_STEPS = 4
# Squared, the standard errors that a mean must differ from zero by.
_DOUBT = 4.0
# A channel that a clamp shuts more often than this keeps the bias that is best without the clamp.
_LEAST_OPEN = 0.02


@dataclass(frozen=True)
class Learned:
    """New weights; and squared error over squared output, with weights rounded to nearest and with these."""

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
            limit = max(1, round(min(_ROWS, unrolled.enough_rows(layer)) / (share * len(batches))))
            both = ((a, b) for (a,), (b,) in zip(now.read([x], share), then.read([y], share), strict=True))
            observed = _Observed.of(unit, _rows(layer, both, limit, few, context.rng()))
            added = missing_channels(unit, placement, plain.opset) if safe else None
            if (learned := _solve(layer, current, observed, free, added)) is not None:
                found[name], current = learned, learned.weights
        unrolled.write(rounded, copy, *_folded(layer, current))
    return found, skips


def _rows(
    layer: Node, both: Iterable[tuple[Array, Array]], limit: int, few: bool, rng: np.random.Generator
) -> Iterator[tuple[Array, Array, Array]]:
    """At most ``limit`` rows of inputs and outputs of each batch, and the number of the sample that each is from.

    With ``few`` samples every row counts as one. Rows are (groups, n, inputs) and (groups, n, outputs).
    """
    groups, _, inputs = unrolled.read(layer)[0].shape
    size, sample = 1 + _CHUNK // (groups * inputs), 0
    for x, y in both:
        rows, targets = unrolled.Rows(layer, x), unrolled.targets(layer, y)
        chosen = sample_positions(rows.count, limit, rng)
        of = sample + (np.arange(len(chosen)) if few else chosen * len(x) // rows.count)
        sample += len(chosen) if few else len(x)
        for start in range(0, len(chosen), size):
            at = chosen[start : start + size]
            into, out = rows.at(at), targets[at]
            fit = np.isfinite(into).all(axis=1) & np.isfinite(out).all(axis=1)
            into, out = (t[fit].reshape(-1, groups, t.shape[1] // groups).swapaxes(0, 1) for t in (into, out))
            yield np.ascontiguousarray(into), np.ascontiguousarray(out), of[start : start + size][fit]


@dataclass(frozen=True)
class _Observed:
    """What reached a layer and what it should make of it, by group.

    ``gram`` (groups, inputs + 1, inputs + 1) sums z z^T with z = [x; 1], without what is held back. ``x`` (groups, n,
    inputs) and ``y`` (groups, n, outputs) are rows of both, ``sample`` (n,) says in rising order where from. ``limits``
    clamp the output.
    """

    gram: Floats
    x: Array
    y: Array
    sample: Array
    limits: tuple[float, float]

    @classmethod
    def of(cls, unit: Unit, rows: Iterable[tuple[Array, Array, Array]]) -> _Observed:
        groups, outputs, inputs = unrolled.read(unit.node)[0].shape
        limits = NO_LIMITS if unit.clamp is None else clamp_limits(unit.clamp)
        gram = np.zeros((groups, inputs + 1, inputs + 1))
        xs, ys = [np.zeros((groups, 0, inputs), np.float32)], [np.zeros((groups, 0, outputs), np.float32)]
        samples = [np.zeros(0, np.intp)]
        for x, y, sample in rows:
            held = _held(sample)
            some = held | (np.arange(len(sample)) % (_HELD - 1) == 0)
            xs.append(x[:, some])
            ys.append(y[:, some].clip(*limits))
            samples.append(sample[some])
            x = x[:, ~held]
            z = np.concatenate((x, np.ones((*x.shape[:2], 1))), axis=2, dtype=np.float64)
            gram += z.swapaxes(1, 2) @ z
        return cls(gram, np.concatenate(xs, axis=1), np.concatenate(ys, axis=1), np.concatenate(samples), limits)

    @property
    def mean(self) -> Floats:
        """Of the inputs, (groups, inputs)."""
        return np.asarray(self.gram[:, -1, :-1] / np.maximum(self.gram[:, -1, -1:], 1.0))

    def spread(self, free: bool) -> Floats:
        """The second moments of the inputs; those of what they differ from their means by where a bias is ``free``."""
        gram, count = self.gram[:, :-1, :-1], np.maximum(self.gram[:, -1:, -1:], 1.0)
        mean = self.mean[:, :, None]
        return np.asarray(gram / count - (mean @ mean.swapaxes(1, 2) if free else 0.0))

    def lost(self, change: Floats, free: bool) -> Floats:
        """What a change of weights does to the outputs of samples held back, squared, (groups, outputs)."""
        held = _held(self.sample)
        x = (self.x[:, held] if held.any() else self.x) - (self.mean[:, None] if free else 0.0)
        return np.asarray(np.square(x.astype(np.float32) @ change.astype(np.float32).swapaxes(1, 2)).mean(axis=1))

    def error(self, weight: Floats, bias: Floats) -> float:
        """Squared error over squared output, clamped."""
        error = float(np.square(self._made(weight, bias) - self.y, dtype=np.float64).sum())
        return error / max(float(np.square(self.y, dtype=np.float64).sum()), 1e-300)

    def bias(self, weight: Floats, bias: Floats) -> Floats:
        """With these weights, the bias that makes the outputs right on average, clamped if they are: Newton's steps.

        Of each step only that part is taken which cannot come from the choice of samples (James and Stein, 1961).
        """
        starts = np.flatnonzero(np.diff(self.sample, prepend=-1))
        if len(starts) < 2:
            return bias
        sizes = np.diff(np.append(starts, len(self.sample)))[:, None]
        lo, hi = self.limits
        for _ in range(_NEWTON_STEPS if self.limits != NO_LIMITS else 1):
            y = self._made(weight, bias)
            is_open = ((y > lo) & (y < hi)).mean(axis=1)
            each = np.add.reduceat((self.y - y).astype(np.float64), starts, axis=1) / sizes
            missing = each.mean(axis=1)
            chance = each.var(axis=1) / (len(starts) - 1)
            sure = np.maximum(0.0, 1 - _DOUBT * chance / np.maximum(np.square(missing), 1e-300))
            bias = bias + np.where(is_open > _LEAST_OPEN, sure * missing / np.maximum(is_open, _LEAST_OPEN), 0.0)
        return bias

    def _made(self, weight: Floats, bias: Floats) -> Array:
        y = self.x @ weight.astype(np.float32).swapaxes(1, 2) + bias[:, None].astype(np.float32)
        return np.asarray(y.clip(*self.limits))


def _held(sample: Array) -> Mask:
    return np.asarray(sample % _HELD == _HELD - 1)


def _solve(layer: Node, current: LayerWeights, observed: _Observed, free: bool, added: int | None) -> Learned | None:
    """Better weights and bias for a layer, if there are any; ``added`` as for ``pairs``, None where nothing overflows.

    A bias that is not ``free`` stays as it is.
    """
    if not len(observed.sample):
        return None
    exact, _ = unrolled.read(layer)
    groups, outputs, inputs = exact.shape
    nearest, bias = _folded(layer, current)
    least = observed.lost(nearest - exact, free)
    gram = observed.spread(free)
    mean = np.trace(gram, axis1=1, axis2=2)[:, None, None] / inputs
    damping = np.where(mean > 0, mean, 1.0) * np.eye(inputs)
    scale = np.broadcast_to(current.params.scale, groups * outputs).reshape(groups, outputs, 1).astype(np.float64)
    steps = unrolled.unroll(layer, current.steps)
    for share in _DAMPINGS:
        tried = unrolled.roll(layer, round_weights(exact / scale, gram + share * damping)).astype(INT8.dtype)
        if added is not None:
            tried = unpaired(layer, relieve(pairs(layer, tried, added)), tried.shape, added)
        found = unrolled.unroll(layer, tried)
        lost = observed.lost(found * scale - exact, free)
        steps = np.where((lost < least)[..., None], found, steps)
        least = np.minimum(lost, least)
    weight, best = steps * scale, bias
    if free:
        best = observed.bias(weight, bias + ((nearest - weight) @ observed.mean[..., None])[..., 0])
    before, after = observed.error(nearest, bias), observed.error(weight, best)
    new = replace(current, steps=unrolled.roll(layer, steps), bias=best.reshape(-1))
    return Learned(new, before, after) if after < before else None


def _folded(layer: Node, weights: LayerWeights) -> tuple[Floats, Floats]:
    """Weights and bias as real numbers: (groups, outputs, inputs) and (groups, outputs)."""
    weight = unrolled.unroll(layer, weights.values.astype(np.float64))
    return weight, weights.bias.reshape(weight.shape[:2])
