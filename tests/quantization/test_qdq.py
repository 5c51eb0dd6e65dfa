"""How scales are chosen so that the runtime can drop what stands in front of a quantizer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.numerics.qparams import INT8, UINT8, dequantize, quantize
from onnxopt.numerics.ranges import Range
from onnxopt.quantization.qdq import activation_qparams

FLOATS = st.floats(-1e6, 1e6, width=32)


@given(FLOATS, FLOATS, FLOATS, FLOATS)
def test_no_integer_stands_for_a_number_outside_the_limits(a, b, c, d):
    lo, hi = min(a, b, 0.0), max(a, b, 1e-3)
    limits = (min(c, d, 0.0), max(c, d, 1e-3))
    params = activation_qparams(Range(max(lo, limits[0]), min(hi, limits[1])), limits)
    smallest, largest = dequantize(np.array([0, 255], np.uint8), params)
    assert np.float32(limits[0]) <= smallest <= 0 <= largest <= np.float32(limits[1])
    assert dequantize(params.zero_point, params) == 0


@given(FLOATS, FLOATS)
def test_values_in_range_come_back_within_half_a_step(a, b):
    values = Range(min(a, b), max(a, b) + 1e-3)
    params = activation_qparams(values)
    x = np.linspace(*values, 99, dtype=np.float32)
    assert (np.abs(dequantize(quantize(x, params), params) - x) <= 0.5001 * params.scale + np.spacing(np.abs(x))).all()


def test_relu_takes_the_smallest_integer_for_zero():
    assert activation_qparams(Range(0.0, 3.0), (0.0, np.inf)).zero_point == 0


@pytest.mark.parametrize("limit", [1.0, 3.0, 6.0, 20.0])
def test_a_clip_that_is_used_in_full_loses_next_to_nothing(limit):
    scale = activation_qparams(Range(0.0, limit), (0.0, limit)).scale
    assert scale == pytest.approx(limit / 255, rel=3e-7)


@given(FLOATS, FLOATS, FLOATS, FLOATS)
def test_signed_integers_are_the_unsigned_ones_moved_by_128(a, b, c, d):
    values, limits = Range(min(a, b, 0.0), max(a, b, 1e-3)), (min(c, d, 0.0), max(c, d, 1e-3))
    unsigned, signed = (activation_qparams(values, limits, qtype) for qtype in (UINT8, INT8))
    assert signed.scale == unsigned.scale
    assert int(signed.zero_point) == int(unsigned.zero_point) - 128
    assert signed.zero_point.dtype == np.int8
