"""From ranges to scale and zero point, and from real numbers to integers and back, as ONNX defines them.

``real = (integer - zero_point) * scale``, ``integer = saturate(round_half_even(real / scale) + zero_point)``
(ONNX QuantizeLinear and DequantizeLinear). Scales are float32, because that is what the model stores: they are rounded
before anything is quantized with them, so that the numbers here are the ones that the runtime computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

# Products of two scales (input and weight) must be normal float32 numbers too, so each keeps well clear of the edge.
SMALLEST_SCALE = 2.0**-60
LARGEST_SCALE = 2.0**127
# Half of int32: the sum of products that the bias is added to needs room in the same accumulator.
BIAS_LIMIT = 2**30


@dataclass(frozen=True)
class QuantType:
    """An integer type with ``bits`` bits. Types under 8 bits are kept in the next larger numpy type."""

    bits: int
    signed: bool

    @property
    def minimum(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def maximum(self) -> int:
        return (1 << (self.bits - 1 if self.signed else self.bits)) - 1

    @property
    def levels(self) -> int:
        return 1 << self.bits

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"{'int' if self.signed else 'uint'}{max(8, self.bits)}")

    def __str__(self) -> str:
        return f"{'int' if self.signed else 'uint'}{self.bits}"


UINT8 = QuantType(8, signed=False)
INT8 = QuantType(8, signed=True)
INT32 = QuantType(32, signed=True)


class QParams(NamedTuple):
    """``scale`` float32 and integer ``zero_point``, of one shape: () per tensor, (channels,) per channel."""

    scale: Array
    zero_point: Array


def qparams_asymmetric(lo: npt.ArrayLike, hi: npt.ArrayLike, qtype: QuantType = UINT8) -> QParams:
    """Parameters that cover [lo, hi] with all levels of ``qtype``; zero is always represented exactly.

    The range is first widened to hold zero (a Pad, a Relu or a pruned channel writes exact zeros). ``lo`` and ``hi``
    are finite, of any one shape. A range of width zero gets scale 1. Raises ValueError for NaN, Inf or lo > hi.
    """
    lo, hi = np.asarray(lo, np.float64), np.asarray(hi, np.float64)
    if not (np.isfinite(lo).all() and np.isfinite(hi).all()):
        raise ValueError("a quantization range must be finite")
    if (lo > hi).any():
        raise ValueError("a quantization range must have lo <= hi")
    bottom, top = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
    # Divided before the subtraction: top - bottom may overflow for ranges near the largest float64.
    steps = qtype.levels - 1
    scale = _storable(top / steps - bottom / steps)
    zero_point = np.clip(np.rint(qtype.minimum - bottom / scale), qtype.minimum, qtype.maximum)
    return QParams(scale.astype(np.float32), zero_point.astype(qtype.dtype))


def weight_qparams(
    weight: Array, axis: int | None = 0, qtype: QuantType = INT8, at_least: npt.ArrayLike = 0.0
) -> QParams:
    """Symmetric parameters (zero point 0) in the narrow range -127..127, one per index of ``axis`` (None: one in all).

    ``at_least`` is the smallest scale allowed of each channel: see ``smallest_weight_scale``. A channel of zeros
    gets ``at_least`` where that is positive, else 1. Raises ValueError when a weight is NaN or Inf.
    """
    weight = np.asarray(weight)
    others = tuple(i for i in range(weight.ndim) if axis is None or i != axis % weight.ndim)
    largest = np.maximum(
        weight.max(axis=others, initial=0).astype(np.float64), -weight.min(axis=others, initial=0).astype(np.float64)
    )
    if not np.isfinite(largest).all():
        raise ValueError("weights must be finite")
    scale = _storable(np.maximum(largest / qtype.maximum, at_least))
    return QParams(scale.astype(np.float32), np.zeros(scale.shape, qtype.dtype))


def smallest_weight_scale(bias: Array, input_scale: npt.ArrayLike) -> Floats:
    """The smallest weight scale, per channel, with which ``bias_quantize`` does not saturate.

    A bias is stored as int32 with scale ``input_scale * weight_scale``. Where a channel's weights are tiny beside its
    bias that overflows; a larger weight scale costs nothing there, because those weights hardly count.
    """
    return np.abs(np.asarray(bias, np.float64)) / (np.asarray(input_scale, np.float64) * BIAS_LIMIT)


def bias_quantize(bias: Array, input_scale: npt.ArrayLike, weight_scale: npt.ArrayLike) -> tuple[Array, Array]:
    """Int32 bias and its float32 scale ``input_scale * weight_scale``.

    ``bias``: (channels,), ``weight_scale``: () or (channels,). The scale is the float32 product, which the runtime
    requires. Raises ValueError when a value would pass half of int32: give ``weight_qparams`` the
    ``smallest_weight_scale`` of this bias and it cannot happen.
    """
    scale = np.asarray(input_scale, np.float32) * np.asarray(weight_scale, np.float32)
    steps = np.rint(np.asarray(bias, np.float64) / scale)
    # One part in a million: scales are rounded to float32 after smallest_weight_scale was taken.
    if not (np.abs(steps) <= BIAS_LIMIT * (1 + 1e-6)).all():
        raise ValueError("the bias does not fit into int32 with these scales; widen the weight scale")
    return steps.astype(np.int32), np.broadcast_to(scale, steps.shape).copy()


def quantize(x: Array, params: QParams, qtype: QuantType = UINT8, axis: int | None = None) -> Array:
    """Integers of ``x``, bit for bit as QuantizeLinear on float32; ``axis`` is that of per-channel ``params``."""
    scale, zero_point = (_along(p, np.ndim(x), axis) for p in params)
    # Saturate before adding: the sum of a large quotient and the zero point would not be exact in float32.
    with np.errstate(over="ignore"):
        steps = np.rint(np.asarray(x, np.float32) / scale)
    offset = zero_point.astype(np.float64)
    steps = np.clip(steps, qtype.minimum - offset, qtype.maximum - offset)
    return np.asarray(steps + offset).astype(qtype.dtype)


def dequantize(q: Array, params: QParams, axis: int | None = None) -> npt.NDArray[np.float32]:
    """Float32 values of the integers ``q``, as DequantizeLinear computes them."""
    scale, zero_point = (_along(p, np.ndim(q), axis) for p in params)
    steps = np.asarray(q, np.int64) - zero_point.astype(np.int64)
    return np.asarray(steps.astype(np.float32) * scale, np.float32)


def _storable(scale: Floats) -> Floats:
    """Never zero, denormal or infinite as float32; 1 where it is zero. Rounded as float32 rounds it."""
    scale = np.where(scale == 0, 1.0, np.clip(scale, SMALLEST_SCALE, LARGEST_SCALE))
    return scale.astype(np.float32).astype(np.float64)


def _along(p: Array, ndim: int, axis: int | None) -> Array:
    if axis is None or p.ndim == 0:
        return p
    shape = [1] * ndim
    shape[axis] = -1
    return p.reshape(shape)
