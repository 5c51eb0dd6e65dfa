"""Choose every tensor's range by what rounding it does to the model's answers.

How far a tensor may be clipped cannot be read off its values: where a rare large one decides, min-max is right, where
it says nothing, half the range is. So each tensor is rounded alone, in several ranges, and what is left of the model
behind it runs on. The samples rest at the tensor, so only what lies behind it is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxopt.core.context import Context
from onnxopt.core.stream import Stream, feeds
from onnxopt.data.statistics import Statistics
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.numerics.qparams import QParams, dequantize, quantize
from onnxopt.numerics.ranges import Method, Range, choose_range, percentile
from onnxopt.quantization.placement import Placement
from onnxopt.quantization.qdq import NO_LIMITS, activation_qparams, limits_of

_METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse")
# Between and beyond what the methods say: shares of the way from the range of least error to all values.
_BETWEEN = (-0.25, 0.33, 0.67)
# Percent of the values: however large the others are, they may say nothing.
_MOST = 99.9
# Few samples at a time keep the tensors in the processor's cache, and what is computed of them small.
_BATCH = 4
# Of the noise: less is within what so few samples can tell.
_WORTH = 0.97
# The exact answers are kept: so many bytes of them at most. So many numbers are compared at once.
_KEPT_BYTES = 2**28
_CHUNK = 2**20


@dataclass(frozen=True)
class Tuned:
    """A tensor's range, and the noise over the signal in the model's outputs when only this tensor is rounded."""

    range: Range
    noise: float
    noise_before: float


def tune(
    model: Model,
    placement: Placement,
    ranges: Mapping[str, Range],
    statistics: Mapping[str, Statistics],
    context: Context,
    samples: int,
) -> dict[str, Tuned]:
    """The best range of every tensor that has a scale of its own, by name.

    ``ranges`` are those that are known; the new one is taken only where it is clearly better. ``model`` is in floats.
    """
    roots = set(placement.roots.values())
    order = [t.name for t in model.graph.inputs] + [t.name for n in model.graph.nodes for t in n.outputs]
    outputs = [t.name for t in model.graph.outputs]
    of_one = 4 * sum(prod(placement.sizes.get(name, ())) for name in outputs) // context.dataset.unit
    samples = min(samples, max(_KEPT_BYTES // max(of_one, 1), context.dataset.unit))
    stream = Stream(model, feeds(context, samples, _BATCH), placement.sizes, context.threads)
    exact = [dict(zip(outputs, values, strict=True)) for values in stream.read(outputs)]
    found, limits = {}, limits_of(placement)
    for name in context.track([n for n in order if n in roots and n in statistics], "choose ranges"):
        stream.rest(name)
        if not stream.rests(name):
            continue
        values = [v for (v,) in stream.read([name])]
        answers = stream.respond(name)
        best = before = None
        for candidate in _candidates(ranges[name], statistics[name]):
            params = activation_qparams(candidate, limits.get(name, NO_LIMITS), context.target.activations)
            noise = _noise(exact, answers([_rounded(v, params, context) for v in values]))
            if before is None or best is None:
                best = before = Tuned(candidate, noise, noise)
            elif noise < best.noise and noise < before.noise * _WORTH:
                best = Tuned(candidate, noise, before.noise)
        if best is not None:
            found[name] = best
    return found


def _candidates(known: Range, statistics: Statistics) -> list[Range]:
    """The known range first, then others, each once."""
    exact, histogram = statistics.exact, statistics.histogram
    if exact is None or histogram is None:
        return [known]
    found = [known, *(choose_range(m, exact, histogram.nonzero, histogram.edges) for m in _METHODS)]
    narrow, wide = found[-1], exact.with_zero()
    found += [Range(*(n + share * (w - n) for n, w in zip(narrow, wide, strict=True))) for share in _BETWEEN]
    found.append(percentile(exact, histogram.nonzero, histogram.edges, _MOST))
    return list(dict.fromkeys(Range(max(r.lo, wide.lo), min(r.hi, wide.hi)) for r in found))


def _rounded(values: Array, params: QParams, context: Context) -> Array:
    """Rounded, and shifted back by channel: biases make good for the mean."""
    if not values.size:
        return values
    result = dequantize(quantize(values, params, context.target.activations), params)
    axes = tuple(k for k in range(values.ndim) if k != (1 if values.ndim > 2 else values.ndim - 1))
    return np.asarray(result + (values - result).mean(axis=axes, keepdims=True, dtype=np.float64), values.dtype)


def _noise(exact: Sequence[Mapping[str, Array]], answers: Iterable[Mapping[str, Array]]) -> float:
    """Energy of the difference over energy of what is exact, summed over the outputs."""
    signal: dict[str, float] = {}
    error: dict[str, float] = {}
    for wanted, got in zip(exact, answers, strict=True):
        for name in (n for n, value in got.items() if isinstance(value, np.ndarray) and value.dtype.kind == "f"):
            exactly, rounded = wanted[name].ravel(), got[name].ravel()
            for start in range(0, exactly.size, _CHUNK):
                x, y = (t[start : start + _CHUNK].astype(np.float64) for t in (exactly, rounded))
                signal[name] = signal.get(name, 0.0) + float(x @ x)
                error[name] = error.get(name, 0.0) + float((x - y) @ (x - y))
    return sum(error[name] / max(signal[name], 1e-300) for name in signal)
